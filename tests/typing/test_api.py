"""A wrong handoff is a type error: the file beside this one is type-checked, and its `type: ignore`s must be needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("workflow_as_users_write_it.py")
BAD = "    bad: Findings = await do(planner, contract)  # type: ignore[arg-type]  # another agent's output"


def check(repository: Path, sample: Path, cache: Path) -> list[str]:
    """What mypy says of a file, under the repository's own strict configuration."""
    pytest.importorskip("mypy", reason="part of the extra dev")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(cache), str(sample)],
        cwd=repository, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


@pytest.mark.timeout(120)
def test_the_api_is_typed_as_users_write_it_and_wrong_handoffs_are_errors(repository: Path, tmp_path: Path) -> None:
    cache = repository / ".mypy_cache"  # warm in `make check`
    assert check(repository, SAMPLE, cache) == []
    bare = tmp_path / "bare.py"
    lines = SAMPLE.read_text().splitlines()
    bare.write_text("\n".join(line.partition("  # type: ignore")[0] for line in lines))
    errors = [line for line in check(repository, bare, cache) if ": error:" in line]
    wrong = [number for number, line in enumerate(lines, 1) if "# type: ignore" in line and not line.startswith('"""')]
    assert sorted({int(error.partition("bare.py:")[2].partition(":")[0]) for error in errors}) == wrong
    assigned = next(error for error in errors if f":{1 + lines.index(BAD)}:" in error)
    assert 'incompatible type "Agent[[Document], Plan]"; expected "Doable[[Document], Findings]"' in assigned
