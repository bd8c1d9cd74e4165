"""The demonstration tells a true story, and tells it with the network cut."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def without_network() -> list[str]:
    """A prefix that runs a command in a network namespace of its own, where no address can be reached."""
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        if (
            shutil.which("unshare")
            and not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
        ):
            return prefix
    pytest.skip("this machine lets nobody make a network namespace (unshare -n)")


@pytest.mark.timeout(180)
def test_the_demo_tells_its_whole_story_with_the_network_cut(tmp_path: Path, repository: Path) -> None:
    told = subprocess.run(
        [*without_network(), sys.executable, "-m", "twolane", "demo", "--folder", str(tmp_path / "demo")],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    story = told.stdout
    assert "forecast from" in story
    assert "rough" in story
    assert "SIGKILL" in story
    assert re.search(r"(\d+) steps were finished before the kill; 0 of them were run again", story)
    assert re.search(r"done, 22 done, 2 in quarantine", story)
    assert re.search(r"\n0 calls, \d+ steps reused, cost 0.00 USD", story)
    assert re.search(r"planner +0 calls", story)
    assert re.search(r"extractor +0 calls", story)
    assert re.search(r"verifier +22 calls +0 reused", story)
    assert re.search(r"\[\S+:\d+-\d+\]", story), "the answer online cites its passage"
    assert "first token" in told.stderr + story
    assert re.search(r"ok: [\d,]+ entries", story)
    breaches = re.search(r"planted breaches +precision ([\d.]+), recall ([\d.]+)", story)
    assert breaches is not None
    assert float(breaches[1]) >= 0.7
    assert float(breaches[2]) >= 0.8


def test_the_commands_of_both_lanes_need_no_network(tmp_path: Path, repository: Path) -> None:
    contracts = repository / "examples" / "contracts"
    one = contracts / "01-brass-fittings.txt"
    for arguments in (
        ["run", "start", "contract-audit", str(one), "--wait", "--json"],
        ["ask", "How many days do we have to pay?", "--file", str(one)],
        ["audit", "verify"],
    ):
        done = subprocess.run(
            [*without_network(), sys.executable, "-m", "twolane", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
