"""Draws docs/figures/*.json: one SVG a question, the tables between the two marks in docs/benchmarks.md, and the answer
between those in docs/buyers.md.

    python tests/load/plots.py [FOLDER]

Every plot names its series where they are drawn, and says the unit of its axis.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, its own folder is there instead

from tests.load.svg import WIDTH, Axis, Picture, milliseconds, number  # noqa: E402
from tests.load.tables import VARIANTS, Facts, answer, section  # noqa: E402

FIGURES = ROOT / "docs" / "figures"
PAGE, BUYERS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "buyers.md"
BEGIN, END = "<!-- online figures: made by tests/load/plots.py -->", "<!-- online figures: end -->"


def _vertical_grid(picture: Picture, axis: Axis, top: float, bottom: float, label: str, *, unit: str = "") -> None:
    for tick in axis.ticks():
        picture.line(axis.at(tick), top, axis.at(tick), bottom)
        text = f"{tick / 1000:g} s" if unit == "ms" and tick >= 1000 else f"{tick:g} {unit}".strip()
        picture.text(axis.at(tick), bottom + 18, text, kind="soft", anchor="middle", size=12)
    picture.text(axis.start, bottom + 38, label, kind="soft", size=12)


def _pair(picture: Picture, axis: Axis, y: float, p50: float, p99: float, *, kind: str, unit: str = "ms") -> None:
    """Median and 99th percentile of one row, joined, with their values beside them."""
    left, right = axis.at(min(p50, p99)), axis.at(max(p50, p99))
    picture.line(left, y, right, y, kind=kind, width=2)
    picture.dot(axis.at(p99), y, kind=kind, is_hollow=True)
    picture.dot(axis.at(p50), y, kind=kind)
    told = milliseconds if unit == "ms" else number
    picture.text(right + 10, y + 4, f"{told(p50)} · {told(p99)}")


# ── the plots ──


def added_ttft(figures: Facts) -> Picture | None:
    """What nginx and the gateway add to the first token at 50 and 200 streams."""
    rows = [
        (f"{figures[name]['streams']} streams", target, facts["added_ttft_ms"])
        for name in ("ttft", "ttft200")
        if name in figures
        for target, facts in figures[name]["targets"].items()
        if target != "direct"
    ]
    if not rows:
        return None
    bottom = 84 + 34 * len(rows)
    picture = Picture(bottom + 54, "Time added to the first token", "● median · ○ 99th percentile, in milliseconds")
    highest = max(max(row[2].values()) for row in rows)
    axis = Axis(min(0.0, *(min(row[2].values()) for row in rows)), highest * 1.05, 190, WIDTH - 130)
    _vertical_grid(picture, axis, 66, bottom, "milliseconds more than direct, in the same round")
    for index, (streams, target, added) in enumerate(rows):
        y = 88 + 34 * index
        if index == 0 or rows[index - 1][0] != streams:
            picture.text(16, y + 4, streams, is_bold=True)
        picture.text(178, y + 4, target, anchor="end")
        kind = "blue" if target == "twolane" else "soft"
        _pair(picture, axis, y, added["p50"], added["p99"], kind=kind, unit="")
    return picture


def isolation(figures: Facts) -> Picture | None:
    """Quantiles of the first-token time: alone, and beside batch under each arrangement."""
    facts = figures.get("isolation")
    if facts is None:
        return None
    variants = {name: each for name, each in facts["variants"].items() if "ttft_ms_idle" in each}
    rows = [("nobody else there", variants["lanes"]["ttft_ms_idle"], "soft")]
    kinds = {"lanes": "blue", "lend": "green", "one line": "orange"}
    rows += [(VARIANTS[name], each["ttft_ms_beside_batch"], kinds[name]) for name, each in variants.items()]
    bottom = 84 + 40 * len(rows)
    picture = Picture(
        bottom + 54,
        "First token online, while batch fills the same upstream",
        "● median · ○ 99th percentile · thin line: from the first percentile on",
    )
    highest = max(row[1]["p99"] for row in rows)
    lowest = min(row[1]["percents"][1] for row in rows)
    axis = Axis(lowest / 1.25, highest * 1.15, 220, WIDTH - 130, is_log=True)
    _vertical_grid(picture, axis, 66, bottom, "time to first token, logarithmic", unit="ms")
    for index, (label, spread, kind) in enumerate(rows):
        y = 88 + 40 * index
        picture.text(16, y + 4, label)
        picture.line(axis.at(spread["percents"][1]), y, axis.at(spread["p50"]), y, kind=kind)
        _pair(picture, axis, y, spread["p50"], spread["p99"], kind=kind)
    return picture


def scarcity(figures: Facts) -> Picture | None:
    """What became of requests over time, one strip for each fate."""
    facts = figures.get("scarcity")
    if facts is None:
        return None
    timeline, width_s = facts["timeline"], facts["timeline"]["bucket_s"]
    strips = [
        ("accepted", timeline["accepted"], "blue"),
        ("refused by us", timeline["refused"], "soft"),
        ("refused by upstream", timeline["upstream_429"], "orange"),
    ]
    height = 74
    bottom = 66 + height * len(strips)
    minutes = facts["requests_per_minute"]
    picture = Picture(
        bottom + 54,
        f"An upstream that takes {minutes} requests a minute, offered {3 * minutes}",
        f"requests in each {width_s:g} s; dashed: what the upstream takes",
    )
    count = len(timeline["accepted"])
    across = Axis(0, count * width_s, 170, WIDTH - 110)
    highest = max(*(max(values) for _, values, _ in strips), minutes / 60 * width_s) or 1
    for index, (label, values, kind) in enumerate(strips):
        base = 66 + height * (index + 1) - 12
        up = Axis(0, highest, base, base - height + 26)
        picture.line(across.start, base, across.end, base)
        picture.text(16, base - 4, label)
        picture.text(across.end + 10, base - 4, f"{sum(values):,}", is_bold=True)
        if label == "accepted":
            limit = up.at(minutes / 60 * width_s)
            picture.dashed(across.start, limit, across.end, limit)
        for number_, value in enumerate(values):
            left, right = across.at(number_ * width_s) + 1, across.at((number_ + 1) * width_s) - 1
            if value:
                picture.bar(left, up.at(value), right - left, base - up.at(value), kind=kind)
    for tick in across.ticks():
        picture.text(across.at(tick), bottom + 12, f"{tick:g}", kind="soft", anchor="middle", size=12)
    picture.text(across.start, bottom + 34, "seconds", kind="soft", size=12)
    picture.text(across.end + 10, 62, "in all", kind="soft", size=12)
    return picture


def department(figures: Facts) -> Picture | None:
    """First-token time of the admitted and the share refused, by users at once."""
    facts = figures.get("department")
    if facts is None:
        return None
    crowds = facts["users"]
    bottom = 92 + 40 * len(crowds)
    picture = Picture(
        bottom + 54,
        f"Everybody asks at the same instant, on {facts['slots']} slots",
        "● median · ○ 99th percentile · thin line: from the tenth on, of those admitted; dashed: the deadline",
    )
    deadline = facts["deadline_ms"]
    highest = max(deadline, *(crowd["admitted_ttft_ms"]["p99"] or 0 for crowd in crowds.values()))
    axis, share = Axis(0, highest * 1.04, 100, 430), Axis(0, 1, 566, WIDTH - 60)
    _vertical_grid(picture, axis, 74, bottom, "time to first token", unit="ms")
    picture.dashed(axis.at(deadline), 74, axis.at(deadline), bottom)
    picture.line(share.start, 74, share.start, bottom)
    picture.text(share.start, bottom + 38, "refused, with when to try again", kind="soft", size=12)
    for index, (users, crowd) in enumerate(crowds.items()):
        y = 98 + 40 * index
        picture.text(16, y + 4, f"{users} users", is_bold=True)
        if crowd["admitted_ttft_ms"]["p50"] is not None:
            spread = crowd["admitted_ttft_ms"]
            picture.line(axis.at(spread["p10"]), y, axis.at(spread["p50"]), y, kind="blue")
            picture.line(axis.at(spread["p50"]), y, axis.at(spread["p99"]), y, kind="blue", width=2)
            picture.dot(axis.at(spread["p99"]), y, kind="blue", is_hollow=True)
            picture.dot(axis.at(spread["p50"]), y, kind="blue")
            picture.text(axis.end + 10, y + 4, f"{milliseconds(spread['p50'])} · {milliseconds(spread['p99'])}")
        refused = crowd["share_refused"]
        picture.bar(share.start, y - 8, share.at(refused) - share.start, 16, kind="orange")
        picture.text(share.at(refused) + 8, y + 4, f"{refused:.0%}")
    return picture


def memory(figures: Facts) -> Picture | None:
    """Resident memory over requests."""
    facts = figures.get("memory")
    if facts is None:
        return None
    top, bottom, promise = 74, 270, 120
    picture = Picture(bottom + 54, "Resident memory of the gateway", "megabytes; dashed: the promise")
    across = Axis(0, facts["requests"], 60, WIDTH - 90)
    up = Axis(0, max(promise, facts["max_mb"]) * 1.1, bottom, top)
    for tick in up.ticks():
        picture.line(across.start, up.at(tick), across.end, up.at(tick))
        picture.text(across.start - 8, up.at(tick) + 4, f"{tick:g}", kind="soft", anchor="end", size=12)
    for tick in across.ticks():
        picture.text(across.at(tick), bottom + 18, f"{tick:,.0f}", kind="soft", anchor="middle", size=12)
    picture.text(across.start, bottom + 38, "requests answered", kind="soft", size=12)
    picture.dashed(across.start, up.at(promise), across.end, up.at(promise))
    picture.path([(across.at(n), up.at(mb)) for n, mb in facts["samples"]], kind="blue")
    last = facts["samples"][-1]
    picture.text(across.at(last[0]) + 8, up.at(last[1]) + 4, f"{last[1]:.0f} MB", is_bold=True)
    return picture


PLOTS: dict[str, Callable[[Facts], Picture | None]] = {
    "added-ttft": added_ttft,
    "isolation": isolation,
    "scarcity": scarcity,
    "department": department,
    "memory": memory,
}


def load(folder: Path) -> Facts:
    """The result of every experiment of `online.py` in a folder, by name; others' results lie beside them."""
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: facts for name, facts in kept.items() if "conditions" in facts}


def between_marks(page: str, text: str) -> str:
    """A page with what is between its two marks made new."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def pages(figures: Facts) -> dict[Path, str]:
    """Every page that tells figures, as it should be."""
    made = {PAGE: section(figures), BUYERS: answer(figures)}
    return {page: between_marks(page.read_text(), text) for page, text in made.items()}


def main(folder: Path = FIGURES) -> None:
    """Draw every plot there are figures for beside them; those of the documentation are written into its pages, too."""
    figures = load(folder)
    if not figures:
        sys.exit(f"there are no figures in {folder}: python tests/load/online.py all")
    for name, draw in PLOTS.items():
        picture = draw(figures)
        if picture is not None:
            (folder / f"{name}.svg").write_text(picture.svg())
    if folder.resolve() == FIGURES:
        for page, text in pages(figures).items():
            page.write_text(text)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:2]))
