"""A run's reports: one JSON file per finished item, and a table, each whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from twolane.batch.run import find, options_of
from twolane.batch.workflow import Workflow
from twolane.kernel import Kernel
from twolane.store import Row

log = logging.getLogger("twolane.batch")

TABLE = "table.csv"
RUN_REPORT = "report"
"""Name of the report over all items, of a workflow that reduces."""
FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""What spreadsheets begin a formula with, as OWASP lists it."""
MAX_NAME = 200
"""Most characters of a report's name: file systems take 255 bytes, and the draft's name is longer."""


def render_report(run_row: Row, item: Row, result: Any) -> dict[Path, bytes]:  # Any: the workflow's own model
    """The item's report files: `<percent-encoded item id>.json`, and `.md` where the result offers one."""
    folder, name = Path(options_of(run_row)["reports"]), report_name(item["name"])
    fields = {
        "run": run_row["id"],
        "item": item["name"],
        "flow": run_row["flow"],
        "result": result.model_dump(mode="json"),
    }
    files = {folder / f"{name}.md": result.markdown().encode()} if hasattr(result, "markdown") else {}
    return files | {folder / f"{name}.json": orjson.dumps(fields, option=orjson.OPT_INDENT_2) + b"\n"}


def write_report(files: Mapping[Path, bytes]) -> None:
    """Write a report's files, each whole or not at all."""
    for path, data in files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, data)


def report_name(item: str) -> str:
    """An item's id as the name of its files: percent-encoded; a long one ends in a digest instead."""
    name = quote(item, safe="") if item != RUN_REPORT else f"%{ord(item[0]):02X}{item[1:]}"
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 20].rpartition('%')[0]}~{hashlib.sha256(item.encode()).hexdigest()[:16]}"


def report_files(folder: Path, item: str) -> tuple[Path, ...]:
    """The files an item's report may have."""
    return tuple(folder / f"{report_name(item)}.{kind}" for kind in ("json", "md"))


def run_report_paths(folder: Path) -> tuple[Path, Path]:
    """Where the report over all items lies, as JSON and as Markdown."""
    return folder / f"{RUN_REPORT}.json", folder / f"{RUN_REPORT}.md"


def finish_reports(kernel: Kernel, flow: Workflow, run: str) -> None:
    """The run's table, and any report that a crash kept from being written; from the stored outputs alone.

    A result that its own code cannot show any more (its model was changed while the run was under way) is logged and
    left out: what was paid for stays, and the run ends.
    """
    row = find(kernel, run)
    folder = Path(options_of(row)["reports"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    rows: list[Mapping[str, object]] = []
    for position in kernel.store.all("positions", run=run, status="done"):
        item = kernel.store.all("items", run=run, first=position["position"], last=position["position"])[0]
        try:
            result = flow.returns.model_validate_json(kernel.read_body(item["output"]), by_alias=True, by_name=True)
            if not (folder / f"{report_name(item['name'])}.json").exists():
                write_report(render_report(row, item, result))
            if hasattr(result, "rows"):
                rows.extend({"item": item["name"], **each} for each in result.rows())
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - the workflow's own model and methods run here; see above
            log.warning("run %s: item %s is not in %s: %s", run, item["name"], TABLE, error)
    if rows:
        rows.sort(key=lambda each: str(each["item"]))
        write_whole(folder / TABLE, _csv(rows))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, even after a crash."""
    with whole_file(path) as draft:
        draft.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside a file, for whoever writes it bit by bit: it takes the file's place at the end, and goes where
    that is not reached. What stood there before stays until then, and who may read it stays the same."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.touch()
        if path.exists():
            shutil.copymode(path, draft)
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _csv(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Rows as CSV, with every column that any of them has."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula is kept from becoming one; numbers are none. A lone carriage
    return, which the writer does not quote, would end the row."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{value}" if value.startswith(FORMULA) else value
