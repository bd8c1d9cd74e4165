"""A picture as a handful of shapes: readable in light and in dark mode, and made without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

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
