"""The chunk queue on a real SQLite file, with the real engine."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from tests.stores import KEPT_AT

from twolane.batch.queue import Chunk, Queue, _engine
from twolane.errors import Killed, StoreError
from twolane.store.postgres import FROZEN_S

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("each_store")]

marker: contextvars.ContextVar[str] = contextvars.ContextVar("marker", default="unset")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def chunks(run: str, count: int, *, attempt: int = 1) -> list[Chunk]:
    return [Chunk(run, attempt, at * 50, at * 50 + 49) for at in range(count)]


def at(path: Path) -> Path | str:
    """The queue of this test: the file, or the database that it runs on."""
    return os.environ.get(KEPT_AT) or path


class Database:
    """What a test asks or does behind the queue's back."""

    def __init__(self, path: Path) -> None:
        self._is_file = isinstance(at(path), Path)
        self.connection: Any = (  # Any: two drivers
            sqlite3.connect(path, timeout=30)
            if self._is_file
            else psycopg.connect(str(at(path)), options="-c search_path=twolane_queue")
        )

    def execute(self, text: str, values: tuple[object, ...] = ()) -> Any:  # Any: two drivers' cursors
        return self.connection.execute(text if self._is_file else text.replace("?", "%s"), values)


@contextmanager
def connect(path: Path) -> Iterator[Database]:
    database = Database(path)
    with closing(database.connection), database.connection:
        yield database


def rows(path: Path, column: str = "status") -> dict[str, str]:
    with connect(path) as connection:
        return dict(connection.execute(f"SELECT workflow_uuid, {column} FROM workflow_status").fetchall())


async def done(_: Chunk) -> str:
    return "done"


async def as_it_was(chunk: Chunk) -> list[Chunk]:
    return [replace(chunk, deaths=chunk.deaths + 1)]


async def never(_: Chunk) -> str:
    raise AssertionError("this chunk must not run here")


async def forever(_: Chunk) -> str:
    await asyncio.Event().wait()
    return "unreachable"


class Crew:
    """A `work` that keeps what it saw and can be held until released."""

    def __init__(self, *, hold: bool = False) -> None:
        self.seen: list[Chunk] = []
        self.started: asyncio.Queue[Chunk] = asyncio.Queue()
        self.cancelled: list[Chunk] = []
        self.at_once = self.most_at_once = 0
        self.may_go = asyncio.Event()
        if not hold:
            self.may_go.set()

    async def __call__(self, chunk: Chunk) -> str:
        self.seen.append(chunk)
        self.started.put_nowait(chunk)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(chunk)
            raise
        finally:
            self.at_once -= 1
        return "done"


async def test_chunks_run_on_the_callers_loop_and_in_its_context(path: Path) -> None:
    loop, seen = asyncio.get_running_loop(), []

    async def work(chunk: Chunk) -> str:
        seen.append((asyncio.get_running_loop() is loop, threading.current_thread(), marker.get(), chunk))
        return "done"

    marker.set("set before open")
    async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
        assert await queue.enqueue(chunks("r", 5)) == 5
        assert await queue.drain() == []
    main = threading.main_thread()
    assert sorted(seen, key=lambda entry: entry[3].first) == [
        (True, main, "set before open", chunk) for chunk in chunks("r", 5)
    ]
    assert set(rows(path).values()) == {"SUCCESS"}


async def test_the_loops_own_executor_is_left_alone(path: Path) -> None:
    async with await Queue.open(at(path), "r", executor_id="a", work=done) as queue:
        await queue.enqueue(chunks("r", 1))
        await queue.drain()
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
    assert not name.startswith("dbos")
    await asyncio.to_thread(int)  # and it still works after the engine is gone


async def test_a_queue_runs_only_the_chunks_of_its_own_run(path: Path) -> None:
    async with await Queue.open(at(path), "other", executor_id="a", work=forever) as queue:
        await queue.enqueue(chunks("other", 3))
    crew = Crew()
    async with await Queue.open(at(path), "mine", executor_id="b", work=crew) as queue:
        await queue.enqueue(chunks("mine", 3))
        assert await queue.drain() == []
    assert {chunk.run for chunk in crew.seen} == {"mine"}
    assert {key: state for key, state in rows(path).items() if key.startswith("other")} == {
        chunk.id: "ENQUEUED" for chunk in chunks("other", 3)
    }


async def test_a_chunk_of_another_run_cannot_be_enqueued(path: Path) -> None:
    async with await Queue.open(at(path), "mine", executor_id="a", work=never) as queue:
        with pytest.raises(ValueError, match="other:1:0-49 does not belong to run mine"):
            await queue.enqueue(chunks("other", 1))


async def test_a_smuggled_chunk_of_another_run_fails_without_running(path: Path) -> None:
    async with await Queue.open(at(path), "mine", executor_id="a", work=never) as queue:
        payload = {"args": [{"run": "other", "attempt": 1, "first": 0, "last": 9}], "kwargs": {}}
        plant(path, "mine:1:0-49", json.dumps(payload), serialization="twolane_json")
        (failed,) = await queue.drain()
    assert failed.error == "chunk other:1:0-9 does not belong to run mine"


async def test_enqueuing_twice_is_enqueuing_once(path: Path) -> None:
    crew = Crew()
    async with await Queue.open(at(path), "r", executor_id="a", work=crew) as queue:
        assert await queue.enqueue(chunks("r", 4)) == 4
        assert await queue.enqueue(chunks("r", 6)) == 2
        await queue.drain()
        assert await queue.enqueue(chunks("r", 6)) == 0
        await queue.drain()
    assert len(crew.seen) == 6


async def test_more_chunks_than_one_transaction_holds_are_all_enqueued(path: Path) -> None:
    async with await Queue.open(at(path), "r", executor_id="a", work=forever) as queue:
        assert await queue.enqueue(chunks("r", 1203)) == 1203
        await queue.cancel()
        assert await queue.drain() == []
    assert list(rows(path).values()) == ["CANCELLED"] * 1203


async def test_at_most_the_given_number_of_chunks_run_at_once(path: Path) -> None:
    crew = Crew(hold=True)
    async with await Queue.open(at(path), "r", executor_id="a", work=crew, concurrency=3) as queue:
        await queue.enqueue(chunks("r", 12))
        for _ in range(3):
            await crew.started.get()
        crew.may_go.set()
        await queue.drain()
    assert len(crew.seen) == 12
    assert crew.most_at_once == 3


async def test_a_lower_priority_number_goes_first(path: Path) -> None:
    crew = Crew(hold=True)
    async with await Queue.open(at(path), "r", executor_id="a", work=crew, concurrency=1) as queue:
        await queue.enqueue(chunks("r", 1))
        await crew.started.get()  # the only slot is taken, so what follows waits
        await queue.enqueue([Chunk("r", 1, 100, 149)], priority=5)
        await queue.enqueue([Chunk("r", 1, 200, 249)], priority=1)
        await queue.enqueue([Chunk("r", 1, 300, 349)])
        crew.may_go.set()
        await queue.drain()
    assert [chunk.first for chunk in crew.seen] == [0, 300, 200, 100]


async def test_a_failing_chunk_is_reported_and_the_others_go_on(path: Path) -> None:
    async def work(chunk: Chunk) -> str:
        if chunk.first == 50:
            raise ValueError("upstream said no — „nein“")
        return "done"

    async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
        await queue.enqueue(chunks("r", 3))
        (failed,) = await queue.drain()
    assert (failed.id, failed.chunk) == ("r:1:50-99", Chunk("r", 1, 50, 99))
    assert failed.error == "ValueError: upstream said no — „nein“"
    assert rows(path) == {"r:1:0-49": "SUCCESS", "r:1:50-99": "ERROR", "r:1:100-149": "SUCCESS"}


@pytest.mark.parametrize(
    "event", [Killed("run:r", "by hand"), asyncio.CancelledError("from elsewhere")], ids=["killed", "cancelled"]
)
async def test_work_that_ends_without_an_exception_proper_does_not_hang_the_run(
    path: Path, event: BaseException
) -> None:
    async def work(_: Chunk) -> str:
        raise event

    async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
        await queue.enqueue(chunks("r", 1))
        (failed,) = await queue.drain()
    assert failed.error == f"{type(event).__name__}: {event}"


async def test_only_the_failures_of_the_newest_attempt_are_reported(path: Path) -> None:
    async def work(chunk: Chunk) -> str:
        if chunk.attempt == 1:
            raise ValueError("the first time it fails")
        return "done"

    async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
        await queue.enqueue(chunks("r", 2))
        assert len(await queue.drain()) == 2
        await queue.enqueue(chunks("r", 2, attempt=2))
        assert await queue.drain() == []


async def test_cancel_stops_the_work_in_flight_and_what_waits(path: Path) -> None:
    crew = Crew(hold=True)
    async with await Queue.open(at(path), "r", executor_id="a", work=crew, concurrency=2) as queue:
        await queue.enqueue(chunks("r", 10))
        running = [await crew.started.get(), await crew.started.get()]
        await queue.cancel()
        assert sorted(crew.cancelled, key=lambda chunk: chunk.first) == sorted(running, key=lambda c: c.first)
        assert await queue.drain() == []
    assert len(crew.seen) == 2
    assert set(rows(path).values()) == {"CANCELLED"}


async def test_the_work_itself_may_cancel_its_queue(path: Path) -> None:
    stopped = asyncio.Event()

    async def work(_: Chunk) -> str:
        await queue.cancel()
        stopped.set()
        return "done"

    async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
        await queue.enqueue(chunks("r", 1))
        await stopped.wait()
        assert await queue.drain() == []
    assert rows(path) == {"r:1:0-49": "CANCELLED"}


async def test_a_cancelled_run_goes_on_under_a_new_attempt(path: Path) -> None:
    crew = Crew(hold=True)
    async with await Queue.open(at(path), "r", executor_id="a", work=crew) as queue:
        await queue.enqueue(chunks("r", 1))
        await crew.started.get()
        await queue.cancel()
        crew.may_go.set()
        assert await queue.enqueue(chunks("r", 1)) == 0  # the cancelled id stays as it is
        assert await queue.enqueue(chunks("r", 1, attempt=2)) == 1
        assert await queue.drain() == []
    assert rows(path) == {"r:1:0-49": "CANCELLED", "r:2:0-49": "SUCCESS"}


async def test_close_gives_the_chunks_in_flight_back(path: Path) -> None:
    crew = Crew(hold=True)
    queue = await Queue.open(at(path), "r", executor_id="a", work=crew)
    await queue.enqueue(chunks("r", 8))
    await crew.started.get()
    await queue.close()
    await queue.close()
    assert crew.cancelled
    assert crew.at_once == 0
    assert set(rows(path).values()) == {"ENQUEUED"}
    async with await Queue.open(at(path), "r", executor_id="b", work=done) as queue:
        assert await queue.drain() == []
    assert set(rows(path).values()) == {"SUCCESS"}


async def test_a_second_queue_in_the_process_is_refused_and_the_first_goes_on(path: Path) -> None:
    async with await Queue.open(at(path), "r", executor_id="a", work=done) as queue:
        with pytest.raises(StoreError, match="open queue"):
            await Queue.open(at(path), "s", executor_id="b", work=never)
        await queue.enqueue(chunks("r", 2))
        assert await queue.drain() == []


async def test_a_launch_that_fails_leaves_the_process_free_for_the_next(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        await Queue.open(tmp_path / "nowhere" / "queue.db", "r", executor_id="a", work=never)
    async with await Queue.open(at(path), "r", executor_id="a", work=done) as queue:
        assert await queue.drain() == []


async def test_a_chunk_that_the_engine_cannot_start_is_an_error_and_not_a_hang(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with await Queue.open(at(path), "r", executor_id="a", work=never) as queue:
        plant(path, "r:1:0-49", "[]", serialization="no_such_format")
        with pytest.raises(StoreError, match=r"1 chunks wait \(r:1:0-49 first\)"):
            await queue.drain(stall_s=0.3)
    assert "no_such_format" in caplog.text


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.at,)  # type: ignore[return-value]  # a Path is what touch wants


def plant(path: Path, workflow_id: str, text: str, *, serialization: str) -> None:
    """Put a row into the queue of its run, as somebody with write access to the file could."""
    with connect(path) as connection:
        connection.execute(
            "INSERT INTO workflow_status (workflow_uuid, status, name, queue_name, priority, serialization,"
            " recovery_attempts, application_version, application_name)"
            " VALUES (?, 'ENQUEUED', 'twolane.chunk', ?, 0, ?, 0, 'chunks-2', 'twolane')",
            (workflow_id, "run." + workflow_id.partition(":")[0], serialization),
        )
        connection.execute("INSERT INTO workflow_input (workflow_uuid, inputs) VALUES (?, ?)", (workflow_id, text))


def test_the_planted_bomb_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()


async def test_a_row_marked_as_pickle_is_refused_and_runs_no_code(path: Path, tmp_path: Path) -> None:
    boom = tmp_path / "boom"
    text = base64.b64encode(pickle.dumps({"args": (Bomb(boom),), "kwargs": {}})).decode()
    async with await Queue.open(at(path), "r", executor_id="a", work=never) as queue:
        plant(path, "r:1:0-49", text, serialization="py_pickle")
        (failed,) = await queue.drain()
    assert not boom.exists()
    assert (failed.id, failed.chunk) == ("r:1:0-49", None)
    assert "marked as pickle" in failed.error
    assert rows(path) == {"r:1:0-49": "ERROR"}


async def test_nothing_that_is_stored_is_a_pickle(path: Path) -> None:
    async def work(chunk: Chunk) -> str:
        if chunk.first:
            raise ValueError("no")
        return "done"

    async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
        await queue.enqueue(chunks("r", 2))
        await queue.drain()
    assert set(rows(path, "serialization").values()) == {"twolane_json"}
    with connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM operation_outputs").fetchone() == (0,)
        stored = connection.execute(
            "SELECT inputs, output, error FROM workflow_input JOIN workflow_output USING (workflow_uuid)"
        ).fetchall()
    assert all(text is None or json.loads(text) for row in stored for text in row)


CHILD = """
import asyncio, logging, os, sys
from pathlib import Path

sys.addaudithook(lambda event, args: (
    event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind") and print("NETWORK", args)
))

from twolane.batch.queue import Chunk, Queue

path, role = Path(sys.argv[1]), sys.argv[2]

async def work(chunk):
    if role == "hang":
        Path(f"{path}.started.{chunk.first}").touch()
        await asyncio.Event().wait()
    if role.startswith("share"):
        with open(f"{path}.log", "a") as log:
            log.write(f"{chunk.id}\\n")
    elif chunk.first == 50:
        raise ValueError("on purpose")
    return "done"

async def main():
    where = os.environ.get("TWOLANE_TEST_STORE") or path
    queue = await Queue.open(where, "r", executor_id=role, work=work, concurrency=2)
    await queue.enqueue([Chunk("r", 1, at, at + 49) for at in range(0, 200, 50)])
    if role == "leave":
        return  # without closing
    await queue.drain()
    await queue.close()

asyncio.run(main())
"""


Child = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def child(path: Path) -> Iterator[Child]:
    """Starts a process in the given role on the same file; all are gone and closed after the test."""
    with ExitStack() as stack:

        def start(role: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-W", "always", "-c", CHILD, str(path), role],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "DBOS__CLOUD": "true", "DBOS__VMID": "else", "DBOS__APPVERSION": "else"},
            )
            stack.enter_context(process)  # waits and closes the pipes
            stack.callback(process.kill)
            return process

        yield start


def test_nothing_is_printed_and_nothing_goes_to_the_network_even_if_the_environment_asks_for_it(
    path: Path, child: Child
) -> None:
    process = child("quiet")
    assert process.communicate(timeout=40) == ("", "")
    assert process.returncode == 0
    assert sorted(rows(path).values()) == ["ERROR", "SUCCESS", "SUCCESS", "SUCCESS"]
    assert set(rows(path, "executor_id").values()) == {"quiet"}


def test_processes_that_open_a_new_file_at_once_share_its_chunks_and_none_runs_twice(path: Path, child: Child) -> None:
    for process in [child(f"share{number}") for number in range(3)]:
        assert process.communicate(timeout=40) == ("", "")
    assert sorted(Path(f"{path}.log").read_text().split()) == sorted(chunk.id for chunk in chunks("r", 4))
    assert set(rows(path).values()) == {"SUCCESS"}


def test_a_process_that_forgets_to_close_still_ends(child: Child) -> None:
    process = child("leave")
    process.communicate(timeout=40)
    assert process.returncode == 0


async def kill_in_mid_chunk(path: Path, process: subprocess.Popen[str], *, chunks: int) -> None:
    while len([*path.parent.glob("*.started.*")]) < chunks:
        assert process.poll() is None, process.communicate()
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


async def test_after_kill_9_the_chunks_are_taken_over_and_run_again(path: Path, child: Child) -> None:
    await kill_in_mid_chunk(path, child("hang"), chunks=2)
    states = rows(path)
    assert sorted(states.values()) == ["ENQUEUED", "ENQUEUED", "PENDING", "PENDING"]
    dead = {key for key, state in states.items() if state == "PENDING"}

    buried: list[str] = []

    async def bury(name: str) -> None:
        buried.append(name)

    crew = Crew()
    async with await Queue.open(at(path), "r", executor_id="next", work=crew) as queue:
        assert await queue.take_over(lambda name: name == "hang", as_it_was, bury=bury) == 0
        assert await queue.take_over(lambda _: False, as_it_was, bury=bury) == 2
        assert buried == ["hang"]
        assert await queue.drain() == []
    assert {replace(chunk, deaths=0).id for chunk in crew.seen if chunk.deaths} == dead
    assert len(crew.seen) == 4
    assert all((rows(path)[key] == "CANCELLED") is (key in dead) for key in states)


async def test_an_executor_id_that_has_unfinished_chunks_is_refused(path: Path, child: Child) -> None:
    await kill_in_mid_chunk(path, child("hang"), chunks=1)
    with pytest.raises(StoreError, match="executor id hang"):
        await Queue.open(at(path), "r", executor_id="hang", work=never)


async def test_the_outcome_of_a_chunk_that_was_taken_from_us_is_refused(path: Path) -> None:
    crew = Crew(hold=True)
    async with await Queue.open(at(path), "r", executor_id="a", work=crew) as queue:
        await queue.enqueue(chunks("r", 1))
        await crew.started.get()
        with connect(path) as connection:  # what a take-over by another executor leaves behind
            connection.execute("UPDATE workflow_status SET executor_id = 'b', owner_xid = 'of b'")
        crew.may_go.set()
        while crew.at_once:
            await asyncio.sleep(0.01)
    assert rows(path) == {"r:1:0-49": "PENDING"}
    assert rows(path, "executor_id") == {"r:1:0-49": "b"}


async def test_the_engines_troubles_reach_our_log_and_the_terminal_stays_clean(
    path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def work(_: Chunk) -> str:
        raise ValueError("seen in the log")

    with caplog.at_level(logging.WARNING, logger="twolane.batch"):
        async with await Queue.open(at(path), "r", executor_id="a", work=work) as queue:
            await queue.enqueue(chunks("r", 1))
            await queue.drain()
    assert "seen in the log" in caplog.text
    assert capfd.readouterr() == ("", "")


async def test_the_file_is_a_wal_file_of_its_own(path: Path) -> None:
    if at(path) != path:
        pytest.skip("there is no file")
    async with await Queue.open(at(path), "r", executor_id="a", work=done):
        with connect(path) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert [entry.name for entry in path.parent.iterdir()] == ["queue.db"]  # no -wal is left after a clean close


async def test_who_is_frozen_in_mid_transaction_keeps_no_lock_on_chunks(path: Path) -> None:
    where = at(path)
    if not isinstance(where, str):
        pytest.skip("a file's lock is held by the frozen until they wake or die")
    async with await Queue.open(where, "r", executor_id="a", work=done):
        with _engine(where).connect() as frozen:
            frozen.execute(sa.text("CREATE TABLE locked (n int)")).close()
            began = time.monotonic()
            with psycopg.connect(where, autocommit=True) as other:  # waits until the server has ended that session
                other.execute("CREATE TABLE locked (n int)")
            assert time.monotonic() - began < 4 * FROZEN_S
            frozen.invalidate()
