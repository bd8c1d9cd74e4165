"""How well the extractive model answers the audit's questions, against expert labels.

    python tests/load/extraction_quality.py PATH_TO_contracts.jsonl.gz [--half tune|report|all] [--misses QUESTION]
    python tests/load/extraction_quality.py examples

Questions and thresholds were chosen on the `tune` half (every other contract, from the first); figures are given for
the other. A folder is read as `gold.json` with `contracts/*.txt`. Columns: labelled contracts; top1, top3: among these,
how often the best (one of three best) passages overlaps a labelled one, whether or not the model would have abstained;
precision and recall of saying that the clause is there at all; right: among the quotes given, how many overlap a label.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from twolane.flows.questions import QUESTIONS
from twolane.rules import extraction, ranking

LABELS = {
    "Parties": "parties",
    "Agreement Date": "agreement_date",
    "Effective Date": "effective_date",
    "Expiration Date": "term",
    "Renewal Term": "renewal",
    "Notice Period To Terminate Renewal": "renewal_notice",
    "Governing Law": "governing_law",
    "Termination For Convenience": "termination_for_convenience",
    "Cap On Liability": "liability_cap",
    "Uncapped Liability": "uncapped_liability",
    "Liquidated Damages": "liquidated_damages",
    "Insurance": "insurance",
    "Audit Rights": "audit_rights",
    "Anti-Assignment": "assignment",
    "Change Of Control": "change_of_control",
    "Exclusivity": "exclusivity",
    "Ip Ownership Assignment": "ip_ownership",
    "Price Restrictions": "price_changes",
    "Warranty Duration": "warranty",
    "Minimum Commitment": "minimum_commitment",
}


@dataclass
class Labelled:
    """A text and what the experts marked in it, by question."""

    id: str
    text: str
    spans: dict[str, list[tuple[int, int]]]


@dataclass
class Tally:
    """Counts of one question."""

    contracts: int = 0
    present: int = 0
    top1: int = 0
    top3: int = 0
    given: int = 0
    given_present: int = 0
    right: int = 0
    misses: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name in ("contracts", "present", "top1", "top3", "given", "given_present", "right"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def row(self, name: str) -> str:
        right = self.contracts - (self.given - self.given_present) - (self.present - self.given_present)
        parts = [
            share(self.top1, self.present),
            share(self.top3, self.present),
            share(self.given_present, self.given),
            share(self.given_present, self.present),
            share(right, self.contracts),
            share(self.right, self.given),
        ]
        return f"{name:28} {self.present:6} " + " ".join(f"{part:>9}" for part in parts)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def read_labelled(path: Path, half: str) -> list[Labelled]:
    everything = read_examples(path) if path.is_dir() else read_lines(path)
    return everything if half == "all" else everything[::2] if half == "tune" else everything[1::2]


def read_lines(path: Path) -> list[Labelled]:
    contracts = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            spans: dict[str, list[tuple[int, int]]] = {question: [] for question in LABELS.values()}
            for label in row["labels"]:
                if label["type"] in LABELS:
                    spans[LABELS[label["type"]]].append((label["start"], label["end"]))
            contracts.append(Labelled(row["id"], row["text"], spans))
    return contracts


def read_examples(folder: Path) -> list[Labelled]:
    contracts = []
    for name, told in json.loads((folder / "gold.json").read_text("utf-8")).items():
        if told["quarantine"] or not name.endswith(".txt"):
            continue
        text = (folder / "contracts" / name).read_text("utf-8")
        spans: dict[str, list[tuple[int, int]]] = {}
        for question, quote in told["facts"].items():
            at = text.find(quote) if quote else -1
            spans[question] = [(at, at + len(quote))] if quote and at >= 0 else []
        contracts.append(Labelled(name, text, spans))
    return contracts


def measure(
    contract: Labelled, questions: dict[str, ranking.Question], filled: dict[str, str | None]
) -> dict[str, Tally]:
    index = ranking.read(contract.text)
    tallies = {}
    for question, spans in contract.spans.items():
        best = ranking.score(questions[question], index).best(3)
        hits = [overlaps(spans, index.units[number].body, index.units[number].end) for number in best]
        quote = filled[question]
        at = contract.text.find(quote) if quote else -1
        tally = Tally(contracts=1, present=bool(spans), given=bool(quote), given_present=bool(quote and spans))
        tally.top1, tally.top3 = any(hits[:1]), any(hits)
        tally.right = bool(quote) and overlaps(spans, at, at + len(quote or ""))
        if bool(quote) != bool(spans) or (quote and not tally.right):
            labels = [contract.text[start:end][:240] for start, end in spans][:3]
            tally.misses.append(f"{contract.id}\n    said  {quote and quote[:240]!r}\n    label {labels}")
        tallies[question] = tally
    return tallies


def overlaps(spans: list[tuple[int, int]], start: int, end: int) -> bool:
    return any(low < end and high > start for low, high in spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--half", choices=["tune", "report", "all"], default="report")
    parser.add_argument("--misses", default="")
    given = parser.parse_args()
    contracts = read_labelled(given.path, given.half)
    questions = {question.id: ranking.ask(question.description, question.id) for question in QUESTIONS}
    schema = {
        "type": "object",
        "properties": {
            question.id: {"anyOf": [{"type": "string"}, {"type": "null"}], "description": question.description}
            for question in QUESTIONS
        },
    }
    tallies: dict[str, Tally] = {}
    spent = 0.0
    for contract in contracts:
        begun = time.perf_counter()
        filled = extraction.fill(schema, contract.text)
        spent += time.perf_counter() - begun
        assert isinstance(filled, dict)
        assert all(quote is None or quote in contract.text for quote in filled.values())
        for question, tally in measure(contract, questions, filled).items():
            whole = tallies.setdefault(question, Tally())
            whole.add(tally)
            whole.misses += tally.misses
    print(
        f"{'question':28} {'labels':>6}  "
        + "  ".join(f"{name:>8}" for name in ("top1", "top3", "precision", "recall", "accuracy", "right"))
    )
    total = Tally()
    for question in questions:
        if question in tallies:
            total.add(tallies[question])
            print(tallies[question].row(question))
    print(total.row("all"))
    chars = sum(len(contract.text) for contract in contracts)
    print(
        f"{len(contracts)} contracts, {chars:,} characters, {len(contracts) / spent:.1f} contracts/s, "
        f"{spent / chars * 33e6:.1f} ms per 33,000 characters and {len(questions)} questions"
    )
    for miss in tallies.get(given.misses, Tally()).misses:
        print(miss)


if __name__ == "__main__":
    main()
