"""The memory of a run (`do.memory`): typed values under names, which the items of a run share, or one keeps for itself.

    seen = do.memory("suppliers", Suppliers)        # scope="item": of this item alone
    known = await seen.read()                       # None: nobody has written it yet
    await seen.update(add_supplier, facts.supplier)

An update is a named pure function from the old value and its arguments to the new one. It is written by comparing and
setting the version, so a conflict calls the function again; and it is made exactly once in a run, known by its item,
its function and its arguments, and not by its place. A read is kept: an item that begins again reads what it read.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, Literal, NamedTuple, ParamSpec, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from twolane.batch.workflow import NeedsCall
from twolane.domain.canonical import canonical_json, commitment, digest
from twolane.domain.records import Origin, Subject
from twolane.errors import ConfigError, HandoffRefused, Problem, validation_words
from twolane.kernel import Kernel, ledger
from twolane.store import Transaction
from twolane.store.vault import seal, unseal

P = ParamSpec("P")
T = TypeVar("T")
Scope = Literal["run", "item"]

MAX_BYTES = 1024 * 1024
"""The largest value: each update writes it anew."""
GROUP = 256
"""Most updates of one process that are written together."""
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value lies. `owner` is empty for the whole run, else the subject of the item it belongs to."""

    tenant: str
    run: str
    owner: str
    name: str

    def key(self) -> dict[str, str]:
        return {"tenant": self.tenant, "run": self.run, "owner": self.owner, "name": self.name}


@dataclass(frozen=True, eq=False)
class _Update:
    """An update that waits to be written."""

    fingerprint: str
    item: str
    change: Callable[[bytes | None], bytes]
    """From the old value as JSON to the new one."""
    made: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: BaseException) -> None:
        if not self.made.done():
            self.made.set_exception(error)

    def succeed(self) -> None:
        if not self.made.done():
            self.made.set_result(None)


class _Value(NamedTuple):
    """What an update came to, as JSON."""

    update: _Update
    body: bytes


class Memories:
    """The memories of a run as one process sees them: its updates of one value are applied one after another and
    written together, so that a thousand at once are a few transactions and not a thousand conflicts."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._subjects: dict[tuple[str, str], Subject] = {}
        self._waiting: dict[_Place, list[_Update]] = {}
        self._writers: dict[_Place, asyncio.Task[None]] = {}

    async def make(self, place: _Place, subject: Subject | None, update: _Update) -> None:
        """Write an update; returns when it is on disk. Given up by its caller it may be made all the same, once."""
        self._waiting.setdefault(place, []).append(update)
        if place not in self._writers:
            self._writers[place] = asyncio.ensure_future(self._write_all(place, subject))
        await update.made

    async def _write_all(self, place: _Place, subject: Subject | None) -> None:
        waiting, group = self._waiting[place], list[_Update]()
        try:
            subject = subject or await self._of_run(place.tenant, place.run)
            while waiting:
                group, waiting[:GROUP] = waiting[:GROUP], []
                await self._write(place, subject, group)
        except BaseException as error:
            for update in (*group, *waiting):
                update.fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            del self._waiting[place], self._writers[place]

    async def _write(self, place: _Place, subject: Subject, group: list[_Update]) -> None:
        """Compare and set, until nobody else was faster."""
        while group := [update for update in group if not update.made.done()]:
            row = self.kernel.store.one("memory", **place.key())
            version, body = 0, None
            if row is not None:
                version = row["version"]
                body = unseal(self.kernel.vault.subject(row, column="subject"), bytes(row["sealed"]))
            values: dict[str, _Value] = {}
            for update in group:
                if update.fingerprint in values:
                    continue  # asked for twice at once: made once
                try:
                    body = update.change(body)
                except Exception as error:  # noqa: BLE001 - the workflow's own function: its error is its item's, the others go on
                    update.fail(error)
                else:
                    values[update.fingerprint] = _Value(update, body)
            if not values:
                return
            found = await self.kernel.store.write(_writing(place, subject, version, list(values.values())))
            made = values.keys() if found is None else found
            for update in group:
                if update.fingerprint in made:
                    update.succeed()

    async def _of_run(self, tenant: str, run: str) -> Subject:
        """Whose key the values of a whole run are sealed with."""
        if (tenant, run) not in self._subjects:
            self._subjects[tenant, run] = await self.kernel.store.write(
                lambda tx: self.kernel.subject(tx, tenant, run_subject(run))
            )
        return self._subjects[tenant, run]


def run_subject(run: str) -> str:
    """The name of the subject of what belongs to a run and not to one of its items."""
    return f"run:{run}"


def _writing(
    place: _Place, subject: Subject, known: int, values: list[_Value]
) -> Callable[[Transaction], set[str] | None]:
    """The work that writes updates one after another: None when it has, else those that were made before."""
    sealed = seal(subject, values[-1].body)
    digests = [(value.update, commitment(subject.salt, value.body)) for value in values]

    def work(tx: Transaction) -> set[str] | None:
        found = {u.fingerprint for u, _ in digests if tx.one("memory_update", fingerprint=u.fingerprint) is not None}
        before, key = tx.one("memory", **place.key()), place.key()
        if found or (before["version"] if before else 0) != known:
            return found
        version, body = known + len(digests), tx.run("add_body", subject=subject.id, sealed=sealed)
        if before is None:
            is_set = tx.run("add_memory", **key, version=version, body=body)
        else:
            is_set = tx.run("set_memory", **key, version=version, body=body, known=known)
        if not is_set:  # where transactions run beside each other
            tx.run("drop_body", body=body)
            return set()
        if before is not None:
            tx.run("drop_unread_body", body=before["body"])
        for number, (update, told) in enumerate(digests, known + 1):
            tx.run("add_memory_update", fingerprint=update.fingerprint, **key, version=number)
            ledger.append(tx, _entry(place, update, number, told))
        return None

    return work


def _entry(place: _Place, update: _Update, version: int, told: str) -> dict[str, object]:
    return {
        "v": 1,
        "kind": "memory",
        "tenant": place.tenant,
        "run": place.run,
        "item": update.item,
        "scope": "item" if place.owner else "run",
        "name": place.name,
        "version": version,
        "update": update.fingerprint,
        "digest": told,
        "at_us": ledger.now_us(),
    }


class Memory(Generic[T]):
    """One value of a run's memory, as one item sees it."""

    def __init__(self, reader: Reader, name: str, kind: type[T], scope: Scope) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name of a memory: lower-case letters, digits, dashes and underscores, 64 at most",
                hint="It stands in the ledger in words: what comes out of documents belongs into the value",
            )
        origin, self._reader, self._kind = reader.origin, reader, TypeAdapter(kind)
        owner = reader.subject.id if scope == "item" else ""
        self._place = _Place(origin.tenant, origin.run, owner, name)

    async def read(self) -> T | None:
        """The value; None where nothing was written yet.

        The first read of an item is kept: until it updates the value itself, in this attempt and in every later one of
        this run, it reads the same. After its own update it reads one in which that is contained.

        Raises:
            HandoffRefused: the stored value does not fit the type.
        """
        body = await self._reader.read(self._place)
        return None if body is None else self._load(body)

    async def update(self, change: Callable[Concatenate[T | None, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Set the value to `change(old value, …)`; returns when that is on disk.

        `change` is a named function without side effects that closes over nothing: it is called again when another
        item was faster. The same function with the same arguments is one update of an item, however often it is asked
        for; give it an argument more where it should be made twice.

        Raises:
            ConfigError: a lambda, a closure or a method, whose name does not say what it does.
            HandoffRefused: what it returned, or the stored value, does not fit the type, or is larger than 1 MB.
        """
        if not inspect.isfunction(change) or "<lambda>" in change.__qualname__ or change.__closure__:
            raise ConfigError(
                f"memory {self._place.name}: an update is known by its function's name and its arguments",
                hint="Give it a function with a name, and what it needs as arguments",
            )

        def changed(body: bytes | None) -> bytes:
            return self._dump(change(None if body is None else self._load(body), *args, **kwargs))

        known = f"{change.__module__}.{change.__qualname__}"
        await self._reader.update(self._place, known, (args, kwargs), changed)

    def _load(self, body: bytes) -> T:
        try:
            return self._kind.validate_json(body)
        except ValidationError as error:
            raise self._refused(error) from None

    def _dump(self, value: T) -> bytes:
        try:
            body = self._kind.dump_json(value, by_alias=True, warnings="error")
            self._kind.validate_json(body)
        except ValidationError as error:
            raise self._refused(error) from None
        except PydanticSerializationError as error:
            raise HandoffRefused(f"memory {self._place.name}", [Problem("", str(error))]) from None
        if len(body) > MAX_BYTES:
            problem = Problem("", f"a value of {len(body):,} bytes is larger than the {MAX_BYTES:,} of a memory")
            raise HandoffRefused(f"memory {self._place.name}", [problem])
        return body

    def _refused(self, error: ValidationError) -> HandoffRefused:
        first = error.errors()[0]
        # In words: a key may quote a document, and a pointer enters the ledger.
        where = "".join(f"/{part}" for part in first["loc"])
        return HandoffRefused(
            f"memory {self._place.name}", [Problem("", f"at {where or '/'}: {validation_words(first)}")]
        )


class Reader:
    """What one item has read and written of its run's memory, in this attempt."""

    def __init__(self, memories: Memories, origin: Origin, subject: Subject, *, is_plan: bool) -> None:
        self.origin, self.subject = origin, subject
        self._memories, self._kernel, self._is_plan = memories, memories.kernel, is_plan
        self._made: dict[_Place, set[str]] = {}

    async def read(self, place: _Place) -> bytes | None:
        """The value as JSON, the same one whenever this item begins again."""
        self._kernel.switches.check(self.origin.scopes())
        made = self._made.get(place)
        after = digest("".join(sorted(made)).encode()) if made else ""
        pin: Mapping[str, str] = {**place.key(), "reader": self.subject.id, "after": after}
        row = self._kernel.store.one("memory_read", **pin)
        if row is None:
            if self._is_plan:
                raise NeedsCall(f"memory {place.name}")
            body = await self._kernel.store.write(lambda tx: _pinned(tx, place, pin))
        else:
            body = row["body"]
        return None if body is None else self._kernel.read_body(body)

    async def update(
        self, place: _Place, change: str, arguments: tuple[Any, Any], changed: Callable[[bytes | None], bytes]
    ) -> None:
        """Make an update, unless this item has made it before."""
        self._kernel.switches.check(self.origin.scopes())
        fingerprint = self._fingerprint(place, change, arguments)
        made = self._kernel.store.one("memory_update", fingerprint=fingerprint) is not None
        if not made and not self._is_plan:
            subject = self.subject if place.owner else None
            await self._memories.make(place, subject, _Update(fingerprint, self.subject.id, changed))
        self._made.setdefault(place, set()).add(fingerprint)

    def _fingerprint(self, place: _Place, change: str, arguments: tuple[Any, Any]) -> str:
        try:
            told = to_jsonable_python(arguments)
            named = {"format": 1, "memory": place.key(), "item": self.subject.id, "change": change, "arguments": told}
            return self._kernel.vault.keyed(canonical_json(named))
        except (ValueError, PydanticSerializationError) as error:
            problem = Problem("", f"the arguments of {change} cannot be written as JSON: {error}")
            raise HandoffRefused(f"memory {place.name}", [problem]) from None


def _pinned(tx: Transaction, place: _Place, pin: Mapping[str, str]) -> int | None:
    """Keep what is read, in the transaction that reads it."""
    before = tx.one("memory_read", **pin)
    if before is None:
        row = tx.one("memory", **place.key())
        version, body = (row["version"], row["body"]) if row is not None else (0, None)
        tx.run("add_memory_read", **pin, version=version, body=body)
        return body
    kept: int | None = before["body"]
    return kept
