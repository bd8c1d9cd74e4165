"""The house as a whole: what it exports, what it ships, and what its smallest command drags in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

import twolane


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints, so that nothing imported by other tests is seen."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_few_and_importable() -> None:
    names = list(twolane.__all__)
    assert 1 <= len(names) <= 25
    assert len(set(names)) == len(names)
    for name in names:
        assert not isinstance(getattr(twolane, name), ModuleType), f"{name} is a module, not a name"


def test_the_public_names_are_all_that_is_importable() -> None:
    """`import *` gives the names of `__all__`, and nothing without an underscore is left lying beside them."""
    code = """
import json, types
space = {}
exec("from twolane import *", space)
space.pop("__builtins__")
import twolane
beside = [name for name in dir(twolane) if not name.startswith("_")
          and not isinstance(getattr(twolane, name), types.ModuleType)]
print(json.dumps([sorted(space), sorted(beside)]))
"""
    starred, beside = json.loads(run_python(code))
    assert starred == sorted(twolane.__all__)
    assert set(beside) <= set(twolane.__all__)


def test_help_imports_nothing_heavy() -> None:
    """`twolane --help` must answer within 200 ms; each of these alone would cost more than it may."""
    code = """
import json, sys
sys.argv = ["twolane", "--help"]
from twolane.cli import main
try:
    status = main()
except SystemExit as end:
    status = end.code
heavy = {"aiohttp", "dbos", "genai_prices", "numpy", "psycopg", "sqlalchemy"}
print("\\n" + json.dumps([status, sorted(heavy & set(sys.modules))]))
"""
    printed, _, result = run_python(code).rstrip().rpartition("\n")
    status, heavy = json.loads(result)
    assert status in (0, None)
    assert heavy == []
    assert "Usage" in printed


def test_importing_the_package_runs_nothing_heavy() -> None:
    code = "import json, sys, twolane; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(run_python(code)))
    assert loaded.isdisjoint({"aiohttp", "dbos", "numpy", "psycopg", "pydantic", "rich", "sqlalchemy", "typer"})


def test_the_package_has_no_path_file(repository: Path) -> None:
    """A `.pth` file runs code in every interpreter of the environment it is installed into."""
    assert list((repository / "src").rglob("*.pth")) == []


def test_the_wheel_holds_the_package_its_data_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds the wheel; part of the extra dev")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=repository, capture_output=True, timeout=50, check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as opened:
        shipped = set(opened.namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in shipped} == {"twolane"}
    assert not [name for name in shipped if name.endswith(".pth")]
    package = repository / "src" / "twolane"
    data = {
        f"twolane/{path.relative_to(package).as_posix()}"
        for pattern in ("*.py", "*.sql", "*.toml", "py.typed")
        for path in package.rglob(pattern)
    }
    assert data <= shipped
