"""The ledger: every entry is a canonical leaf of one RFC 6962 tree, appended in the transaction of the work it records.

A leaf carries no payloads, only salted commitments. Entries of a run are also chained (`prev`, `seq`), so that one run
can be checked alone. Nothing is updated or deleted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import orjson

from twolane.domain.canonical import leaf_bytes
from twolane.errors import LedgerBroken, StoreError
from twolane.kernel import rollups
from twolane.rules import budgets
from twolane.rules.merkle import CompactRange, leaf_hash
from twolane.store import Row, Store, Transaction

PAGE = 4096
"""Leaves read at a time while verifying."""


_WORDS = ("op", "lane", "status")


def now_us() -> int:
    """The instant an entry is stamped with: microseconds of Unix time, UTC. The house's only reading of that clock."""
    return time.time_ns() // 1000


def append(tx: Transaction, fields: Mapping[str, object]) -> int:
    """Add one entry; its position. None values are left out: a leaf has no nulls.

    Raises:
        InvalidEntry: see `domain.canonical.leaf_bytes`. Nothing of the group's work is lost, only this one's.
    """
    tree = _tree(tx)
    chained = {name: value for name, value in fields.items() if value is not None}
    for name in _WORDS:  # where a StrEnum may stand; a leaf takes exact types only
        word = chained.get(name)
        if word is not None and type(word) is not str and isinstance(word, StrEnum):
            chained[name] = str.__str__(word)
    run = chained.get("run")
    link = _chain(tx, run) if isinstance(run, str) else None
    if link is not None:
        chained["seq"], chained["prev"] = link.seq, link.prev
    leaf = leaf_bytes(chained)
    digest, position = leaf_hash(leaf), tree.size
    waiting: _Waiting = tx.cache["waiting"]
    waiting.leaves.append(leaf.decode())
    waiting.hashes.append(digest)
    tree.push(digest)
    if link is not None:
        link.seq, link.prev = link.seq + 1, digest.hex()
    return position


def flush(tx: Transaction) -> None:
    """Write what was appended in this transaction so far, for a question that reads entries inside it."""
    waiting: _Waiting | None = tx.cache.get("waiting")
    if waiting is not None and waiting.leaves:
        leaves, hashes = orjson.dumps(waiting.leaves).decode(), b"".join(waiting.hashes)
        tx.run("append_entries", first=waiting.first, leaves=leaves, hashes=hashes)
        waiting.first += len(waiting.leaves)
        waiting.leaves.clear()
        waiting.hashes.clear()


@dataclass
class _Link:
    seq: int
    prev: str


@dataclass
class _Waiting:
    """Entries of a group of works, written by one statement: one statement each was most of the writer's time, because
    the interpreter's lock changes hands at every one of them."""

    first: int
    leaves: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)


def _tree(tx: Transaction) -> CompactRange:
    tree: CompactRange | None = tx.cache.get("tree")
    if tree is None:
        row = tx.one("tree")
        size = row["size"] if row else 0
        last = tx.one("last_position")
        if (last["position"] if last else -1) != size - 1:
            raise LedgerBroken(
                f"the tree is {size} entries long, but the last entry kept is {last['position'] if last else 'none'}: "
                "nothing more is written. Look with: twolane audit verify",
                first_bad=min(size, last["position"] + 1 if last else 0),
            )
        tree = tx.cache["tree"] = CompactRange.from_bytes(row["frontier"]) if row else CompactRange()
        tx.cache["waiting"] = _Waiting(tree.size)
        tx.before_commit(lambda: _keep(tx, tree))
    return tree


def _chain(tx: Transaction, run: str) -> _Link:
    links: dict[str, _Link] = tx.cache.setdefault("chains", {})
    if run not in links:
        row = tx.one("chain", run=run)
        links[run] = _Link(row["seq"], row["prev"]) if row else _Link(0, "")
    return links[run]


def _keep(tx: Transaction, tree: CompactRange) -> None:
    flush(tx)
    tx.run("set_tree", size=tree.size, frontier=tree.to_bytes(), root=tree.root())
    for run, link in tx.cache.get("chains", {}).items():
        tx.run("set_chain", run=run, seq=link.seq, prev=link.prev)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found. `first_bad` is the position of the first entry that is not what was appended, None
    when every entry is sound (a missing tail or a drifted total then stands in `problem`)."""

    ok: bool
    entries: int
    root: str
    first_bad: int | None
    problem: str
    seconds: float


def verify(store: Store) -> Verdict:
    """Recompute everything from the leaves alone: hashes, positions, chains, the root, and the totals of runs and days.

    The root is compared with the one the store kept. Until checkpoints are signed and witnessed, someone who can write
    every table can forge all of them together; changing entries alone is found.
    """
    began = time.perf_counter()
    state = _Check()
    position: int | None = 0
    count = PAGE
    try:
        with store.snapshot():
            while position is not None and state.first_bad is None:
                try:
                    rows = store.all("entries", first=position, count=count)
                except StoreError:
                    if count == 1:
                        raise
                    count = 1  # a page of the file is damaged: go on one by one, so that the entry can be named
                    continue
                position = state.read(rows, position, count)
            problem = state.problem or _compare(store, state)
    except StoreError as error:
        problem = f"it cannot be read from position {state.tree.size}: {error}"
        state.first_bad = state.tree.size
    return Verdict(
        ok=not problem,
        entries=state.tree.size,
        root=state.tree.root().hex(),
        first_bad=state.first_bad,
        problem=problem,
        seconds=time.perf_counter() - began,
    )


class _Check:
    """Running state of a verification."""

    def __init__(self) -> None:
        self.tree = CompactRange()
        self.chains: dict[str, _Link] = {}
        self.totals: dict[str, list[int]] = {}
        self.days: dict[tuple[object, ...], list[int]] = {}
        """Calls and picounits by day, counted from 1970, and by what names a step."""
        self.first_bad: int | None = None
        self.problem = ""

    def read(self, rows: Sequence[Row], first: int, count: int) -> int | None:
        """Check a page; the next position to read, None at the end."""
        for row in rows:
            problem = self._entry(row["position"], row["leaf"], row["hash"])
            if problem:
                self.first_bad, self.problem = self.tree.size, f"entry {self.tree.size}: {problem}"
                return None
        return first + len(rows) if len(rows) == count else None

    def _entry(self, position: object, leaf: object, kept: object) -> str:
        if position != self.tree.size:
            return f"it is missing; the next one kept is {position}"
        if not isinstance(leaf, bytes):
            return "its leaf is not there"
        digest = leaf_hash(leaf)
        if digest != kept:
            return "its leaf was changed: it does not hash to what was kept when it was appended"
        try:
            fields = orjson.loads(leaf)
            cost = int(fields.get("cost_pico", 0))
        except (ValueError, TypeError, AttributeError):
            return "its leaf is not one of ours: leaf and hash were changed together"
        run = fields.get("run")
        if isinstance(run, str):
            link = self.chains.setdefault(run, _Link(0, ""))
            if (fields.get("seq"), fields.get("prev")) != (link.seq, link.prev):
                return f"the chain of run {run} is broken here"
            link.seq, link.prev = link.seq + 1, digest.hex()
        if fields.get("kind") == "step":
            self._count(fields, cost)
        self.tree.push(digest)
        return ""

    def _count(self, fields: Mapping[str, object], cost: int) -> None:
        get, at_us, run = fields.get, fields.get("at_us"), fields.get("run")
        has_left = get("status") not in ("reused", "unreached")
        day = at_us // budgets.DAY_US if isinstance(at_us, int) and 0 <= at_us < 2**53 else 0
        name = (day, *[str(get(part) or "") for part in rollups.NAMED_BY])
        _add(self.days.setdefault(name, [0, 0]), has_left, cost)
        if isinstance(run, str):
            _add(self.totals.setdefault(run, [0, 0]), has_left, cost)


def _add(total: list[int], has_left: bool, cost: int) -> None:
    total[0] += has_left
    total[1] += cost


def _compare(store: Store, state: _Check) -> str:
    """What the store keeps beside the entries must agree with them."""
    kept = store.one("tree")
    size, root = (kept["size"], kept["root"]) if kept else (0, CompactRange().root())
    if size != state.tree.size:
        return f"the tree was {size} entries long, but {state.tree.size} are there: the end was cut off or added to"
    if root != state.tree.root():
        return "the root of the tree is not the one that was kept: entries and their hashes were changed together"
    chains = {row["run"]: (row["seq"], row["prev"]) for row in store.all("chains")}
    if chains != {run: (link.seq, link.prev) for run, link in state.chains.items()}:
        return "the runs' chain heads are not those of the entries"
    totals = {row["run"]: [row["calls"], row["cost_pico"]] for row in store.all("all_run_totals")}
    for run in state.totals.keys() | totals.keys():
        told, counted = totals.get(run, [0, 0]), state.totals.get(run, [0, 0])  # items may end without a call
        if told != counted:
            return f"run {run}: its totals {told} are not those of its entries {counted} (calls, picounits)"
    return _compare_days(store, state)


def _compare_days(store: Store, state: _Check) -> str:
    """Each day's totals, and what was charged for on it, must be those of its entries."""
    kept = {
        tuple(str(row[name]) for name in ("day", *rollups.NAMED_BY)): [row["calls"], row["cost_pico"]]
        for row in store.all("all_day_totals")
    }
    charged = {str(row["day"]): row["cost_pico"] for row in store.all("charged_by_day")}
    counted: dict[tuple[str, ...], list[int]] = {}
    costs: dict[str, int] = {}
    for (number, *name), total in state.days.items():
        assert isinstance(number, int)
        day = budgets.window("day", number * budgets.DAY_US)
        counted[day, *map(str, name)] = total
        costs[day] = costs.get(day, 0) + total[1]
    for key in kept.keys() | counted.keys():  # a row may be there for items alone
        told, found = kept.get(key, [0, 0]), counted.get(key, [0, 0])
        if told != found:
            named = " ".join(filter(None, key))
            return f"day {named}: its totals {told} are not those of its entries {found} (calls, picounits)"
    for day in charged.keys() | costs.keys():
        if charged.get(day, 0) != costs.get(day, 0):
            told, paid = charged.get(day, 0), costs.get(day, 0)
            return f"day {day}: its charges come to {told} picounits, but its entries to {paid}"
    return ""
