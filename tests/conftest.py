"""What every folder of tests shares."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.stores import ADAPTERS, KEPT_AT, KEYS_AT, empty, fresh_database

# A shared or busy machine must not fail a property for being slow: pytest-timeout holds the real limit.
settings.register_profile("twolane", deadline=None, print_blob=True)
settings.load_profile("twolane")

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
"""Linux: read and set an interface's flags."""

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed may hold anything; what one process of the suite tells another must be text."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: published test vectors and samples, too large to live in it."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the test vectors and samples in ../shared/data, which are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """One database for all tests that leave nothing odd behind: to make one takes a second."""
    with fresh_database() as made:
        yield made


@pytest.fixture(params=ADAPTERS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be made, once for every adapter."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'store.db'}"
    else:
        shared = str(request.getfixturevalue("database"))
        yield shared
        empty(shared)


@pytest.fixture
def each_store(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole test once for every adapter: `stores.kept_in` says where."""
    if not address.startswith("sqlite:"):
        monkeypatch.setenv(KEPT_AT, address)
        monkeypatch.setenv(KEYS_AT, str(tmp_path / "keys"))


@pytest.fixture(scope="session", autouse=True)
def loopback() -> None:
    """The suite runs with the network cut (`unshare -n make test`): a fresh namespace has its loopback down, and
    whoever made the namespace may raise it. Nothing else is ever reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        (flags,) = struct.unpack_from("16xh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s16x", b"lo")))
        if not flags & IFF_UP:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
