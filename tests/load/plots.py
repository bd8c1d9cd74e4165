"""Draws docs/figures/*.json: one SVG a question, the tables between the two marks in docs/benchmarks.md, and the answer
between those in docs/buyers.md.

    python tests/load/plots.py [FOLDER]

No library: a plot here is a few dozen shapes. Every one is readable in light and in dark mode, names its series where
they are drawn, and says the unit of its axis.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
PAGE, BUYERS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "buyers.md"
BEGIN, END = "<!-- online figures: made by tests/load/plots.py -->", "<!-- online figures: end -->"

Facts = dict[str, Any]  # Any: JSON
WIDTH = 760
LIGHT = {"ground": "#fcfcfb", "ink": "#1d1c1a", "soft": "#66645e", "grid": "#e3e1db"}
DARK = {"ground": "#1a1a19", "ink": "#f1f0ed", "soft": "#aaa8a1", "grid": "#3a3936"}
COLOURS = {"blue": ("#2468c4", "#6ba5f2"), "orange": ("#c2541b", "#ee8b55"), "green": ("#14805a", "#3fbd8d")}
"""In light, in dark: dark enough on the one ground, light enough on the other."""


class Picture:
    """An SVG under construction; coordinates are pixels from the top left."""

    def __init__(self, height: int, title: str, subtitle: str) -> None:
        self.height, self.title = height, title
        self._shapes: list[str] = []
        self.text(16, 28, title, size=16, is_bold=True)
        self.text(16, 48, subtitle, kind="soft")

    def text(
        self, x: float, y: float, text: str, *, kind: str = "ink", anchor: str = "start", size: int = 13,
        is_bold: bool = False,
    ) -> None:  # fmt: skip
        """One line of text; `y` is its base line."""
        bold = ' font-weight="600"' if is_bold else ""
        self._shapes.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{bold}>'
            f"{escape(text)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, kind: str = "grid", width: float = 1) -> None:
        """A straight line."""
        self._shapes.append(
            f'<line class="s-{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width}"/>'
        )

    def dashed(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A limit or promise."""
        self._shapes.append(
            f'<line class="s-soft" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-dasharray="4 3"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], *, kind: str) -> None:
        """A curve through points."""
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(f'<polyline class="s-{kind}" points="{text}" fill="none" stroke-width="2"/>')

    def bar(self, x: float, y: float, width: float, height: float, *, kind: str) -> None:
        """A filled rectangle."""
        self._shapes.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5"/>'
        )

    def dot(self, x: float, y: float, *, kind: str, is_hollow: bool = False) -> None:
        """A mark: full for a median, hollow for a 99th percentile."""
        look = f'class="ground s-{kind}" stroke-width="2"' if is_hollow else f'class="{kind}"'
        self._shapes.append(f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="{4.5 if is_hollow else 5}"/>')

    def svg(self) -> str:
        """The whole file."""
        names = [*LIGHT, *COLOURS]
        light = LIGHT | {name: pair[0] for name, pair in COLOURS.items()}
        dark = DARK | {name: pair[1] for name, pair in COLOURS.items()}

        def rules(shades: dict[str, str]) -> str:
            return "".join(f".{n}{{fill:{shades[n]}}}.s-{n}{{stroke:{shades[n]}}}" for n in names)

        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" role="img" font-family="system-ui, sans-serif">\n<title>{escape(self.title)}'
            f"</title>\n<style>{rules(light)}\n@media (prefers-color-scheme: dark){{{rules(dark)}}}</style>\n"
            f'<rect class="ground" width="{WIDTH}" height="{self.height}" rx="8"/>\n'
            + "\n".join(self._shapes)
            + "\n</svg>\n"
        )


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; what is outside lies on the edge."""
        value = min(max(value, self.low), self.high)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.is_log else (self.low, self.high)
        value = math.log10(value) if self.is_log else value
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values: about five, or 1, 2 and 5 of each power of ten."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            return [value for value in values if self.low <= value <= self.high]
        raw = (self.high - self.low) / 5 or 1
        step = min((digit * 10.0 ** math.floor(math.log10(raw)) for digit in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
        return [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """With as many digits as say something."""
    if value and abs(value) < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds, or seconds from one thousand on."""
    if value is None:
        return "–"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{number(value)} ms"


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


_VARIANTS = {
    "lanes": "beside batch, in lanes",
    "lend": "beside batch, lanes that lend",
    "one line": "beside batch, one line for all",
}


def isolation(figures: Facts) -> Picture | None:
    """Quantiles of the first-token time: alone, and beside batch under each arrangement."""
    facts = figures.get("isolation")
    if facts is None:
        return None
    variants = {name: each for name, each in facts["variants"].items() if "ttft_ms_idle" in each}
    rows = [("nobody else there", variants["lanes"]["ttft_ms_idle"], "soft")]
    kinds = {"lanes": "blue", "lend": "green", "one line": "orange"}
    rows += [(_VARIANTS[name], each["ttft_ms_beside_batch"], kinds[name]) for name, each in variants.items()]
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
    axis, share = Axis(0, highest * 1.04, 100, 430), Axis(0, 1, 560, WIDTH - 60)
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


# ── the tables ──


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _judged(value: float, promise: float, *, is_floor: bool = False) -> str:
    """Whether a promise is kept, in a word."""
    return "met" if (value >= promise if is_floor else value <= promise) else "not met"


def _spread(spread: Facts) -> str:
    return f"{milliseconds(spread['p50'])} / {milliseconds(spread['p99'])}"


def _first_token(figures: Facts) -> str:
    promises = {"ttft": (0.5, 5.0), "ttft200": (2.0, None)}
    rows, lines = [], []
    for name, (p50, p99) in promises.items():
        if name not in figures:
            continue
        facts = figures[name]
        for target, each in facts["targets"].items():
            if target == "direct":
                continue
            added = each["added_ttft_ms"]
            rows.append(
                [
                    str(facts["streams"]),
                    target,
                    f"{added['p50']:.2f} / {added['p99']:.2f} ms",
                    f"{each['load_sustained']:.2f}",
                    f"{each['cpu_s_per_1000']:.1f}",
                    f"{each['resident_mb']:.0f} MB",
                    str(each["errors"]),
                ]
            )
        added = facts["targets"]["twolane"]["added_ttft_ms"]
        promise = f"{facts['streams']} streams: ≤ {p50:g} ms p50 is {_judged(added['p50'], p50)}"
        lines.append(promise + (f", ≤ {p99:g} ms p99 is {_judged(added['p99'], p99)}" if p99 else ""))
    if not rows:
        return ""
    head = ["streams", "target", "added first token p50 / p99", "load sustained", "CPU s per 1,000", "memory", "errors"]
    rounds = next(figures[name]["rounds"] for name in promises if name in figures)
    return (
        "### First token\n\n![Time added to the first token](figures/added-ttft.svg)\n\n" + table(head, rows) + "\n"
        f"50 ms to the first token, 20 ms between tokens, 64 tokens; differences to direct within a round, median of\n"
        f"{rounds} rounds. Promises: {'; '.join(lines)}.\n\n"
        "Commands: `python tests/load/online.py ttft`, `python tests/load/online.py ttft200`\n"
    )


def _ceiling(figures: Facts) -> str:
    facts = figures.get("ceiling")
    if facts is None:
        return ""
    rows = [
        [
            target,
            f"{each['requests_per_second']:,.0f}",
            f"{each['cpu_s_per_1000']:.2f}" if "cpu_s_per_1000" in each else "–",
            f"{each['resident_mb']:.0f} MB" if "resident_mb" in each else "–",
            str(each["errors"]),
        ]
        for target, each in facts["targets"].items()
    ]
    ours = facts["targets"]["twolane"]["requests_per_second"]
    ratio = facts.get("ratio_to_nginx")
    told = f"; of nginx: {ratio:.2f} (promise 0.4: {_judged(ratio, 0.4, is_floor=True)})" if ratio is not None else ""
    return (
        "### Ceiling\n\nNothing waits: zero delay, 20 tokens a stream, 50 connections.\n\n"
        + table(["target", "streamed requests a second", "CPU s per 1,000", "memory", "errors"], rows)
        + f"\nPromise: 2,000 a second is {_judged(ours, 2000, is_floor=True)}{told}.\n\n"
        "Command: `python tests/load/online.py ceiling`\n"
    )


def _thousand(figures: Facts) -> str:
    facts = figures.get("thousand")
    if facts is None:
        return ""
    rows = [
        [
            f"`{each['model']}`",
            f"{each['requests']:,}",
            str(each["errors"]),
            f"{each['most_at_once_upstream']:,}",
            _spread(each["ttft_ms"]),
            f"{each['cpu_s_per_1000']:.1f}",
            f"{each['resident_mb']:.0f} MB",
        ]
        for each in (facts["slow"], facts["fast"])
    ]
    head = ["model", "requests", "errors", "most at once", "first token p50 / p99", "CPU s per 1,000", "memory"]
    return (
        f"### {facts['streams']:,} streams at once\n\n"
        "As a slow model (5 tokens a second in each stream), and as a fast one (50 a second in each, more than such a\n"
        "machine carries: late, but whole). Promise: no error.\n\n"
        + table(head, rows)
        + "\nCommand: `python tests/load/online.py thousand`\n"
    )


def _memory(figures: Facts) -> str:
    facts = figures.get("memory")
    if facts is None:
        return ""
    slope, errors = facts["slope_second_half_mb_per_100000"], facts["errors"]
    flat = {True: "flat", False: "not flat", None: "too few to say whether it stays flat"}[facts["is_flat"]]
    return (
        "### Memory\n\n![Resident memory over requests](figures/memory.svg)\n\n"
        f"{facts['start_mb']:.0f} MB at the start, at most {facts['max_mb']:.0f} MB over {facts['requests']:,} "
        f"streamed requests ({errors} errors); ≤ 120 MB is {_judged(facts['max_mb'], 120)}.\n"
        f"The second half grew by {slope:.1f} MB per 100,000 requests: {flat}."
        "\n\n"
        "Command: `python tests/load/online.py memory`\n"
    )


def _cancel(figures: Facts) -> str:
    facts = figures.get("cancel")
    if facts is None:
        return ""
    rows = [
        [
            moment,
            str(each["generations"]),
            f"{each['share']:.0%}",
            milliseconds(each["last_cancelled_after_ms"]),
            str(each["tokens_after_hangup"]),
            "nothing" if each["nothing_held"] else json.dumps(each["held_after"]),
        ]
        for moment, each in facts["moments"].items()
    ]
    head = ["the client hung up", "generations upstream", "cancelled within 1 s", "the last one after", "tokens after"]
    return (
        f"### Hang-ups\n\n{facts['clients']} clients each time. "
        "Promise: all generations are cancelled within a second, and nothing stays held.\n\n"
        + table([*head, "still held"], rows)
        + "\nCommand: `python tests/load/online.py cancel`\n"
    )


def _isolation(figures: Facts) -> str:
    facts = figures.get("isolation")
    if facts is None:
        return ""
    rows = []
    for name, each in facts["variants"].items():
        if "ttft_ms_idle" not in each:
            continue
        batch = each["batch"]
        busy = f"{batch['slots_busy']:.0%} ({batch['mean_in_flight']:.1f} calls)" if "slots_busy" in batch else "–"
        rows.append(
            [
                _VARIANTS[name],
                _spread(each["ttft_ms_idle"]),
                _spread(each["ttft_ms_beside_batch"]),
                f"{each['ratio']['p50']:.2f} / {each['ratio']['p99']:.2f}",
                busy,
                f"{batch['calls_waiting']:,}",
            ]
        )
    lanes = facts["variants"]["lanes"]
    head = ["arrangement", "alone p50 / p99", "beside batch p50 / p99", "ratio", "batch slots busy", "calls waiting"]
    p99, busy_share = lanes["ratio"]["p99"], lanes["batch"]["slots_busy"]
    return (
        "### Isolation\n\n![First token online beside batch](figures/isolation.svg)\n\n" + table(head, rows) + "\n"
        f"An upstream of {facts['upstream_slots']} places; {facts['users']} people online who think "
        f"{facts['think_s']} s between two questions; a batch worker in a process\nof its own. One line: batch clients "
        "call like anybody, and the upstream serves in the order of arrival. Promises in lanes:\np99 ≤ 1.1 × alone is "
        f"{_judged(p99, 1.1)}; batch keeps ≥ 90 % of its slots busy is {_judged(busy_share, 0.9, is_floor=True)}.\n\n"
        "Command: `python tests/load/online.py isolation --lend`\n"
    )


def _scarcity(figures: Facts) -> str:
    facts = figures.get("scarcity")
    if facts is None:
        return ""
    minutes, refused = facts["requests_per_minute"], facts["refused_after_ms"]
    share_met = _judged(facts["share_429"], 0.01)
    rows = [
        [
            "refused by the upstream (429)",
            "≤ 1 %",
            f"{facts['share_429']:.1%} of {facts['upstream_requests']}",
            share_met,
        ],
        [
            "first token of accepted requests p50 / p99",
            f"as unloaded: {_spread(facts['ttft_ms_unloaded'])}",
            _spread(facts["ttft_ms_accepted"]),
            "",
        ],
        [
            "refusals arrive after p50 / p99",
            "≤ 50 ms",
            _spread(refused),
            _judged(refused["p99"], 50) if refused["n"] else "",
        ],
        ["accepted, of what was offered", "", f"{facts['share_accepted']:.1%} of {facts['offered']}", ""],
        ["accepted, of what the upstream takes", "", f"{facts['accepted_of_what_the_upstream_takes']:.1%}", ""],
    ]
    return (
        "### Scarcity\n\n![Requests over time at a scarce upstream](figures/scarcity.svg)\n\n"
        + table(["figure", "promise", "measured", ""], rows)
        + f"\nThe upstream refuses past {minutes} requests in any minute; Poisson arrivals at {3 * minutes} a minute "
        f"for {facts['seconds']:g} s, on a route with\n`deadline_ms = {facts['deadline_ms']}`.\n\n"
        "Command: `python tests/load/online.py scarcity`\n"
    )


def _department(figures: Facts) -> str:
    facts = figures.get("department")
    if facts is None:
        return ""
    rows = [
        [
            users,
            _spread(crowd["admitted_ttft_ms"]),
            f"{crowd['share_refused']:.0%}",
            _spread(crowd["refused_after_ms"]) if crowd["refused_after_ms"]["n"] else "–",
            milliseconds(crowd["longest_without_a_word_ms"]),
            str(crowd["errors"]),
        ]
        for users, crowd in facts["users"].items()
    ]
    longest = max(crowd["longest_without_a_word_ms"] or 0 for crowd in facts["users"].values())
    head = ["users at once", "admitted: first token p50 / p99", "refused", "refused after p50 / p99"]
    return (
        "### A department at once\n\n![First token and share refused](figures/department.svg)\n\n"
        + table([*head, "longest wait for any word", "errors"], rows)
        + f"\n{facts['slots']} slots, 1.3 s a generation, `deadline_ms = {facts['deadline_ms']}`. Nobody waits past "
        f"the deadline (and 0.1 s on the way) is {_judged(longest, facts['deadline_ms'] + 100)}.\n\n"
        "Command: `python tests/load/online.py department`\n"
    )


def section(figures: Facts) -> str:
    """What stands between the two marks: the conditions, then a table and a plot for each experiment there is."""
    conditions = [each["conditions"] for each in figures.values()]
    quick = sorted(name for name, each in figures.items() if each["effort"] != "full")
    head = (
        f"Measured on {conditions[0]['processors']} shared processors, Python {conditions[0]['python']}, "
        + (f"nginx {conditions[0]['nginx']} with one worker" if conditions[0]["nginx"] else "without nginx")
        + ".\nThe load client and the mock upstream run on the same processors. Keys, routing, budgets on tenant and "
        "key, record, switches\nand durable acknowledgement are on in every one.\n"
    )
    if quick:
        head += f"\nOnly a quick look, not for the record: {', '.join(quick)}.\n"
    refused = sorted({key for each in figures.values() for key in _refused_keys(each)})
    if refused:
        head += f"\nThis version has no {', '.join(f'`{key}`' for key in refused)}: measured without.\n"
    makers = (_first_token, _ceiling, _thousand, _memory, _cancel, _isolation, _scarcity, _department)
    return "\n".join([head, *(text for text in (maker(figures) for maker in makers) if text)])


def _refused_keys(facts: Facts) -> list[str]:
    variants = facts.get("variants", {}).values()
    return [key for each in (facts, *variants) for key in each.get("refused_keys", {})]


def load(folder: Path) -> Facts:
    """Every experiment's result in a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def answer(figures: Facts) -> str:
    """The figures behind the buyers' first question, one line each."""
    lines = []
    if "department" in figures:
        facts = figures["department"]
        longest = max(crowd["longest_without_a_word_ms"] or 0 for crowd in facts["users"].values())
        lines.append(f"- On {facts['slots']} slots, with `deadline_ms = {facts['deadline_ms']}`, at the same instant:")
        for users, crowd in facts["users"].items():
            lines.append(
                f"  - {users} users: {1 - crowd['share_refused']:.0%} admitted, their first token after "
                f"{_spread(crowd['admitted_ttft_ms'])} (p50 / p99); the others refused, with when to try again"
            )
        lines.append(f"  - nobody waited longer than {milliseconds(longest)} for a word")
    if "isolation" in figures:
        variants = figures["isolation"]["variants"]
        lanes, line = variants["lanes"], variants.get("one line")
        lines.append(
            f"- Beside a batch run with {lanes['batch']['calls_waiting']:,} calls waiting for the same upstream, the "
            f"p99 of the first token is {lanes['ratio']['p99']:.2f} × what it is\n  alone, while batch keeps "
            f"{lanes['batch']['slots_busy']:.0%} of its slots busy"
            + (f"; with batch in one line with people it is {line['ratio']['p99']:.0f} ×." if line else ".")
        )
    if "scarcity" in figures:
        facts = figures["scarcity"]
        lines.append(
            f"- At an upstream that takes {facts['requests_per_minute']} requests a minute and is offered three times "
            f"that, {facts['share_429']:.1%} of what reached it was refused there;\n  accepted requests had their "
            f"first token after {milliseconds(facts['ttft_ms_accepted']['p50'])} (unloaded: "
            f"{milliseconds(facts['ttft_ms_unloaded']['p50'])}), refusals came after "
            f"{milliseconds(facts['refused_after_ms']['p50'])}."
        )
    return "\n".join(lines) + "\n"


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
