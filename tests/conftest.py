"""What every folder of tests shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A shared or busy machine must not fail a property for being slow: pytest-timeout holds the real limit.
settings.register_profile("twolane", deadline=None, print_blob=True)
settings.load_profile("twolane")

REPOSITORY = Path(__file__).resolve().parents[1]


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
