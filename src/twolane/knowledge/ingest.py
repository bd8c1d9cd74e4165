"""Files → documents. Text, Markdown, PDF with a text layer, JSON lines (plain or gzipped), CSV, folders of these, and
rows of a database (`query`).

What cannot be read is told apart: an argument that is wrong (a missing file, a broken JSON line) stops before anything
starts; a document that is wrong (empty, scanned, too large, not UTF-8) becomes a source with its `problem`, so that its
item goes to quarantine and the rest goes on.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel

from twolane.domain.document import Document
from twolane.errors import DocumentRefused, UsageError
from twolane.knowledge.query import Query, read_rows

MAX_BYTES = 32 * 1024 * 1024
"""A larger document is refused: it is a dump, not a document."""
MAX_TEXT = 8_000_000
"""Most characters of one document."""
MIN_LETTERS = 20
"""A PDF with fewer letters has no text layer worth the name: it is a scan."""

TEXT_SUFFIXES = (".txt", ".text", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".pdf", ".jsonl", ".jsonl.gz", ".csv")


@dataclass(frozen=True, slots=True)
class Source:
    """One item's input: a document, or a row of named values; or the problem that keeps it from being read."""

    id: str
    document: Document | None = None
    row: Mapping[str, object] | None = None
    problem: str = ""


Input = str | Path | Document | BaseModel | Query
"""What a run can be given: the path of a file or a folder, a document, a row as a pydantic model with an `id`, or a
query for rows."""


def read_documents(paths: Sequence[str]) -> list[Document]:
    """Documents of files and folders, for callers who need every one of them.

    Raises:
        UsageError: see `read_sources`.
        DocumentRefused: one of them cannot be read.
    """
    documents = []
    for source in read_sources(paths):
        if source.document is None:
            raise DocumentRefused(f"{source.id}: {source.problem or 'a row is not a document'}")
        documents.append(source.document)
    return documents


def read_sources(inputs: Sequence[Input]) -> list[Source]:
    """Everything in these files and folders, and these documents and rows, each with its id: the file's name (its path
    inside a folder), the document's own, or the `id` of a JSON line, a CSV row or a model.

    Raises:
        UsageError: a path is not there or has an unknown ending, a line is not JSON, an id is missing or stands twice,
            or there is nothing at all.
    """
    sources = [source for given in inputs for source in _given(given)]
    if not sources:
        raise UsageError(
            f"there is nothing to read in {', '.join(map(str, inputs)) or 'no inputs at all'}",
            hint=f"Give files or a folder of {', '.join(SUFFIXES)}",
        )
    seen: set[str] = set()
    for source in sources:
        if source.id in seen:
            raise UsageError(f"the id {source.id!r} stands twice: every document needs an id of its own")
        seen.add(source.id)
    return sources


def _given(given: Input) -> Iterator[Source]:
    match given:
        case Document():
            yield _source(given)
        case BaseModel():
            row = given.model_dump(mode="json", by_alias=True)
            yield _row(_id(row, f"the row {given!r:.80}"), row, "")
        case Query():
            for number, values in enumerate(read_rows(given), 1):
                where = f"{given}, row {number}"
                yield _row(_id(values, where), values, f"{given.database}:{number}")
        case _:
            yield from _read(Path(given))


def _read(path: Path) -> Iterator[Source]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path)
            is_hidden = any(part.startswith(".") for part in inside.parts)
            if not is_hidden and _suffix(file) in SUFFIXES and file.is_file():
                yield from _read_file(file, _utf8(inside))
        return
    if not path.exists():
        raise UsageError(f"{path} is not there", hint="Check the path; nothing was started")
    if _suffix(path) not in SUFFIXES:
        raise UsageError(
            f"{path}: files ending in {path.suffix or 'nothing'} cannot be read",
            hint=f"Known endings: {', '.join(SUFFIXES)}",
        )
    yield from _read_file(path, _utf8(Path(path.name)))


def _read_file(path: Path, name: str) -> Iterator[Source]:
    match _suffix(path):
        case ".jsonl" | ".jsonl.gz":
            yield from _read_lines(path)
        case ".csv":
            yield from _read_table(path)
        case suffix:
            try:
                document = _pdf(path, name) if suffix == ".pdf" else _text(path, name)
            except DocumentRefused as error:
                yield Source(name, problem=str(error))
            else:
                yield Source(name, document)


def _text(path: Path, name: str) -> Document:
    return _checked(Document(name, _decoded(_bytes(path)), _utf8(path)))


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DocumentRefused(
                f"{size / 2**20:.0f} MB is more than the {MAX_BYTES // 2**20} MB a document may have; split it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DocumentRefused(f"it cannot be read: {error.strerror}") from None


def _decoded(data: bytes) -> str:
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentRefused(
            f"it is not UTF-{16 if is_utf16 else 8} text (byte {error.start}). Convert it, for example: "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    if "\0" in text:  # zeros are good UTF-8, but what has them is UTF-16 without its mark, or no text at all
        raise DocumentRefused(f"it is not text: byte {data.find(0)} is zero. Convert it to UTF-8")
    return text


def _checked(document: Document) -> Document:
    if not document.text.strip():
        raise DocumentRefused("it has no text")
    if len(document.text) > MAX_TEXT:
        raise DocumentRefused(
            f"{len(document.text):,} characters are more than the {MAX_TEXT:,} of a document; split it"
        )
    return document


def _pdf(path: Path, name: str) -> Document:
    import pypdfium2

    data = _bytes(path)
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise DocumentRefused(f"it is not a readable PDF: {error}") from None
    try:
        pages = []
        for page in pdf:
            text = page.get_textpage()
            pages.append(text.get_text_range().replace("\r\n", "\n").replace("\ufffe", "-"))
            text.close()
            page.close()
    except pypdfium2.PdfiumError as error:
        raise DocumentRefused(f"a page of it cannot be read: {error}") from None
    finally:
        pdf.close()
    if sum(character.isalpha() for page in pages for character in page) < MIN_LETTERS:
        raise DocumentRefused(
            f"its {len(pages)} pages hold no text: it is a scan. Run OCR on it first, then add the result"
        )
    starts, length = [], 0
    for page_text in pages:
        starts.append(length)
        length += len(page_text) + 1
    return _checked(Document(name, "\n".join(pages), _utf8(path), tuple(starts)))


def _read_lines(path: Path) -> Iterator[Source]:
    opener = gzip.open if _suffix(path) == ".jsonl.gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _line(path, number, line)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}, after line {number}: it cannot be read: {error}") from None


def _line(path: Path, number: int, line: bytes) -> Source:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}, line {number}: it is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise UsageError(f"{path}, line {number}: each line is an object with an id of its own")
    return _row(_id(row, f"{path}, line {number}"), row, f"{_utf8(path)}:{number}")


def _id(row: Mapping[str, object], where: str) -> str:
    """The id of a row; a number counts as its digits."""
    value = row.get("id")
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    raise UsageError(f"{where}: it has no id. Each needs one of its own, under the name id")


def _row(name: str, row: Mapping[str, object], source: str) -> Source:
    text = row.get("text")
    return _source(Document(name, text, source), row) if isinstance(text, str) else Source(name, row=row)


def _source(document: Document, row: Mapping[str, object] | None = None) -> Source:
    try:
        return Source(document.id, _checked(document), row)
    except DocumentRefused as error:
        return Source(document.id, row=row, problem=str(error))


def _read_table(path: Path) -> Iterator[Source]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if "id" not in (reader.fieldnames or ()):
                raise UsageError(f"{path}: its first line must name the columns, one of them id")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row:
                    raise UsageError(f"{where}: it has more cells than the first line has names")
                yield _row(_id(row, where), row, f"{_utf8(path)}:{reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: it cannot be read as CSV: {error}") from None


def _utf8(path: Path) -> str:
    """The path as text that can be stored: bytes of a name that are not UTF-8 are written out."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".jsonl.gz" if name.endswith(".jsonl.gz") else path.suffix.lower()
