"""What an experiment of the online lane stands on: the bench kit's mock upstream, nginx where it is installed, and a
gateway in a fresh store with all its promises on. Everything started here is stopped on every path."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from twolane import config
from twolane.errors import ConfigError

Facts = dict[str, Any]  # Any: JSON
START_S = 20
STOP_S = 40
"""Longer than a gateway may drain."""
ROUTE = "bench"
"""What clients name as model; its one upstream is the mock."""


@dataclass
class Gateway:
    """A running `twolane serve` and what is needed to ask it. Money is on: its tenant and key have a budget."""

    url: str
    pid: int
    key: str
    file: Path
    """Its configuration."""
    refused_keys: dict[str, str] = field(default_factory=dict)
    """Optional configuration keys that this version refuses, with its words."""

    @property
    def store(self) -> Path:
        """Its SQLite file."""
        return self.file.parent / "bench.db"

    def query(self, sql: str) -> list[tuple[Any, ...]]:  # Any: SQLite's values
        """What a question to its store gives, read only."""
        with contextlib.closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    def held(self) -> Facts:
        """What is still held: reservations, and money or tokens on any budget."""
        reservations = self.query("SELECT count(*) FROM reservation")[0][0]
        told = _twolane("budget", "list", "--config", str(self.file))
        money = sum(float(row.get("held", 0)) for row in told["budgets"])
        tokens = sum(row["tokens"]["held"] for row in told["budgets"] if "tokens" in row)
        return {"reservations": reservations, "money": money, "tokens": tokens}

    def nothing_held_within(self, seconds: float) -> tuple[bool, Facts]:
        """Whether every hold is given back in time, and what is held at last."""
        end = time.monotonic() + seconds
        held = self.held()
        while any(held.values()) and time.monotonic() < end:
            time.sleep(0.1)
            held = self.held()
        return not any(held.values()), held


class Stage:
    """Starts things, and stops them all when it is left, last first."""

    def __init__(self, kit: Path) -> None:
        self.kit = kit
        self.notes: list[str] = []
        """What a reader of the figures has to know: what was missing, what ended badly."""
        self._folder = Path(tempfile.mkdtemp(prefix="twolane-load-"))
        self._running: list[tuple[str, subprocess.Popen[str], Path]] = []

    def __enter__(self) -> Stage:
        raise_open_files()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            self.stop(self._running[-1][1])
        shutil.rmtree(self._folder, ignore_errors=True)
        if error is not None:
            print(*self.notes, sep="\n", file=sys.stderr)

    # ── what can be started ──

    def mock(self, *flags: str) -> str:
        """The kit's upstream; gives its address."""
        port = free_port()
        script = self.kit / "mock_upstream.py"
        self._start("mock", [sys.executable, str(script), "--port", str(port), *flags])
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(f"{url}/health"), f"the mock upstream on {url}")
        return url

    def nginx(self, upstream: str, connections: int) -> tuple[str, int] | None:
        """A reverse proxy with one worker, nothing buffered, connections kept; its address and process, None where
        nginx is not installed."""
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            self.notes.append("nginx is not installed: it was left out")
            return None
        folder, port = self._folder / "nginx", free_port()
        folder.mkdir()
        temporary = "".join(
            f"  {name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            ("user root;\n" if os.geteuid() == 0 else "")
            + f"worker_processes 1;\ndaemon off;\npid {folder / 'pid'};\nerror_log {folder / 'log'} warn;\n"
            "worker_rlimit_nofile 20000;\nevents { worker_connections 8192; }\n"
            f"http {{\n  access_log off;\n  keepalive_requests 1000000;\n{temporary}"
            f"  upstream mock {{ server {upstream.removeprefix('http://')}; keepalive {connections};"
            " keepalive_requests 1000000; }\n"
            f"  server {{\n    listen 127.0.0.1:{port} backlog=4096;\n    location / {{\n"
            "      proxy_pass http://mock;\n      proxy_http_version 1.1;\n"
            '      proxy_set_header Connection "";\n      proxy_buffering off;\n    }\n  }\n}\n'
        )
        process = self._start("nginx", [program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")])
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(f"{url}/health"), f"nginx on {url}")
        return url, process.pid

    def gateway(
        self,
        upstream: str,
        model: str,
        *,
        online: int,
        batch: int = 4,
        deadline_ms: int = 30_000,
        optional: Sequence[str] = (),
    ) -> Gateway:
        """`twolane serve` in a fresh store: a key, a budget on tenant and key, a route, durable acknowledgement.

        `optional` lines are added to the upstream's table where this version's configuration knows them.
        """
        folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=self._folder))
        file = folder / "twolane.toml"
        settings = {"upstream": upstream, "model": model, "online": online, "batch": batch, "deadline_ms": deadline_ms}
        kept, refused = _known(file, settings, optional)
        file.write_text(_toml(settings, kept))
        key = _twolane("key", "create", "--tenant", "bench", "--name", "load", "--config", str(file))["key"]
        command = [sys.executable, "-m", "twolane", "serve", "--config", str(file), "--port", "0"]
        process = self._start("gateway", command, folder)
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            process.wait(START_S)
            raise RuntimeError(f"the gateway did not start: {self.log_of(process)}")
        url = line[line.index("http://") :].strip().removesuffix("/v1")
        return Gateway(url, process.pid, key, file, refused)

    def child(self, name: str, command: list[str]) -> subprocess.Popen[str]:
        """Any other process, its input and output piped."""
        return self._start(name, command)

    # ── ending ──

    def stop(self, process: subprocess.Popen[str]) -> None:
        """End one of ours, and note it when it ends badly."""
        name, log = next((name, log) for name, each, log in self._running if each is process)
        try:
            began = time.monotonic()
            if process.poll() is not None and (process.returncode != 0 or name in ("mock", "nginx", "gateway")):
                self.notes.append(f"{name} ended by itself with {process.returncode}: {self.log_of(process)}")
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    self.notes.append(f"{name} did not end within {STOP_S} s of SIGTERM and was killed")
            seconds = time.monotonic() - began
            if name == "gateway":
                words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                if process.returncode != 0 or words:
                    self.notes.append(f"the gateway ended with {process.returncode}; end of its log: {words[-12:]}")
                if seconds > 5:
                    self.notes.append(f"the gateway took {seconds:.1f} s to end after SIGTERM")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            self._running = [each for each in self._running if each[1] is not process]

    def _start(self, name: str, command: list[str], folder: Path | None = None) -> subprocess.Popen[str]:
        log = Path(tempfile.mkstemp(prefix=f"{name}-", suffix=".log", dir=self._folder)[1])
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, cwd=folder or self._folder, env=environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self._running.append((name, process, log))
        return process

    def log_of(self, process: subprocess.Popen[str]) -> str:
        """The end of what one of ours said on its error output."""
        log = next(log for _, each, log in self._running if each is process)
        return log.read_text(errors="replace")[-2000:]


def stats(upstream: str) -> Facts:
    """The mock's counters."""
    with urllib.request.urlopen(f"{upstream}/stats", timeout=10) as response:
        told: Facts = json.load(response)
    return told


def reset(upstream: str) -> None:
    """Its counters from zero again."""
    urllib.request.urlopen(urllib.request.Request(f"{upstream}/stats/reset", method="POST"), timeout=10).close()


def resident_mb(pid: int) -> float:
    """A process's resident memory, in MB of 10⁶ bytes as the kit counts them."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 2)


def cpu_s(pid: int) -> float:
    """Processor seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def raise_open_files() -> int:
    """As many open files as this machine lets us have, for us and what we start; gives how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        port: int = any_socket.getsockname()[1]
    return port


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_S) -> None:
    """Poll until it holds.

    Raises:
        RuntimeError: it does not, in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Ours, without what would override a configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


def _twolane(*arguments: str) -> Facts:
    command = [sys.executable, "-m", "twolane", *arguments, "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"twolane {' '.join(arguments)}: {done.stderr.strip()}")
    answer: Facts = json.loads(done.stdout)
    return answer


def _toml(settings: Mapping[str, object], optional: Sequence[str]) -> str:
    return "\n".join(
        [
            'store = "sqlite:bench.db"',
            "[upstream.mock]",
            'kind = "openai"',
            f'url = "{settings["upstream"]}/v1"',
            f'model = "{settings["model"]}"',
            'price = { input = "0.05", output = "0.08" }',
            f"slots = {{ online = {settings['online']}, batch = {settings['batch']} }}",
            *optional,
            f"[route.{ROUTE}]",
            'light = "mock"',
            f"deadline_ms = {settings['deadline_ms']}",
            "durable_ack = true",
            '[budget."tenant:bench"]',
            'money = "100000"',
            'period = "month"',
            '[budget."key:bench/load"]',
            'money = "50000"',
            'period = "month"',
            "",
        ]
    )


def _known(file: Path, settings: Mapping[str, object], optional: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Which optional lines this version's configuration takes, and what it says to the others."""
    kept: list[str] = []
    refused: dict[str, str] = {}
    for line in optional:
        file.write_text(_toml(settings, [*kept, line]))
        try:
            config.load(file)
        except ConfigError as error:
            refused[line.partition(" ")[0]] = str(error).replace(str(file), file.name)
        else:
            kept.append(line)
    return kept, refused
