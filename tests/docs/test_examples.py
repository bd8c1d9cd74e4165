"""The examples run, and what the documentation shows of them is what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from twolane import config


def test_the_answer_to_the_third_question_is_what_the_example_prints(repository: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(config.ENVIRONMENT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", repository / "examples" / "step7of10.py"], capture_output=True, text=True,
        env={**kept, "PYTHONPATH": str(repository / "src")}, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = (
        (repository / "docs" / "buyers.md").read_text("utf-8").partition("## What happens when step 7 of 10 fails?")[2]
    )
    shown = re.search(r"^```text\n(.*?)^```$", answer, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert done.stdout == shown[1]
