"""The official SDKs' own resource tests, run against the gateway: `python tests/conformance/sdk_resources.py`.

The source distributions of `openai` and `anthropic` carry tests of every resource, to be pointed at a server that
speaks their protocol. This fetches them through pip, at the versions that are installed, unpacks them into a temporary
folder, and runs those of the resources that the gateway serves. Their `conftest.py` is replaced by the one below: it
needs nothing but the SDK, and leaves out what is no test of a server like ours, each with its reason. Nothing of them
is kept.

Ends with 0 when every test passed or was left out with a reason, with 75 when the tests could not be fetched.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anthropic.resources.messages import DEPRECATED_MODELS
from tests.conformance.gateway import gateway, is_served

from twolane.models.rehearsal import Rehearsal

OFFLINE = 75
"""Exit code: "temporary failure; try again later", as mail programs have it."""


@dataclass(frozen=True)
class Suite:
    """What is run of one SDK."""

    package: str
    files: Mapping[str, str]
    """Test file → the address of ours that it needs."""
    left_out: Mapping[str, str]
    """A pattern of test names → why they are left out."""
    edits: Mapping[str, tuple[str, str]]
    """What is changed in their text: pattern → replacement and reason."""
    at_v1: bool
    """Its base URL ends with `/v1`."""

    @property
    def sync_client(self) -> str:
        """The class of its synchronous client; the other's name begins with `Async`."""
        return {"openai": "OpenAI", "anthropic": "Anthropic"}[self.package]


COUNT = "/v1/messages/count_tokens"
_NOTHING_KEPT = "answers are not kept, so there is nothing to read, change, list or delete"

SUITES = (
    Suite(
        "openai",
        files={
            "chat/test_completions.py": "/v1/chat/completions",
            "test_models.py": "/v1/models",
            "test_embeddings.py": "/v1/embeddings",
            "test_responses.py": "/v1/responses",
        },
        left_out={
            r"test_completions.*(retrieve|update|list|delete)": _NOTHING_KEPT,
            r"test_models.*delete": "models are made in the configuration, not by clients",
            r"test_responses.*(retrieve|delete|cancel)": _NOTHING_KEPT,
            r"test_embeddings.*_create\[(strict|aiohttp)": "they judge the base64 that the SDK asked for itself",
            r"test_responses.*compact": "the gateway does not write summaries of its own",
            r"test_responses.*with_all_params": "they ask for a kept conversation, in the background: it is not kept",
        },
        edits={
            r"(max_(?:completion_)?tokens)=0\b": (r"\1=16", "nobody can be given an answer of 0 tokens"),
            r"(responses(?:\.\w+)?\.create\()(\s*(?:stream=True,?\s*)?\))": (
                r'\1model="model", input="Hello", \2',
                "they name no model and ask nothing",
            ),
        },
        at_v1=True,
    ),
    Suite(
        "anthropic",
        files={"test_messages.py": "/v1/messages", "test_models.py": "/v1/models"},
        left_out={
            r"test_messages.*create_with_all_params": "they ask for containers and skills of Anthropic's own servers",
        }
        | ({} if is_served(COUNT) else {r"count_tokens": f"the gateway has no {COUNT}"}),
        edits={},
        at_v1=False,
    ),
)

MODELS = ("gpt-6-astra", "model", "model_id", *DEPRECATED_MODELS)
"""Names that their tests ask for; further ones are found in their text."""

CONFTEST = '''\
"""The clients that these tests ask for, and what is left out."""

import os
import re

import pytest
from pytest_asyncio import is_async_test

import {package}

LEFT_OUT = {left_out!r}


def pytest_collection_modifyitems(items):
    for item in items:
        if is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
        for pattern, reason in LEFT_OUT.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))


def settings(strict):
    return dict(
        base_url=os.environ["TEST_API_BASE_URL"], api_key="none", max_retries=0, _strict_response_validation=strict
    )


@pytest.fixture(scope="session")
def client(request):
    with {package}.{client}(**settings(getattr(request, "param", True))) as client:
        yield client


@pytest.fixture(scope="session")
async def async_client(request):
    param = getattr(request, "param", True)
    chosen = dict(settings(param if isinstance(param, bool) else True))
    if isinstance(param, dict) and param.get("http_client") == "aiohttp":
        try:
            chosen["http_client"] = {package}.DefaultAioHttpClient()
        except RuntimeError:
            pytest.skip("this client is an extra of the SDK that is not installed")
    async with {package}.Async{client}(**chosen) as client:
        yield client
'''

INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\npythonpath = .\n"


def fetch(package: str, folder: Path) -> Path | None:
    """The unpacked source distribution of the installed version; None where no index can be reached."""
    wanted = f"{package}=={importlib.metadata.version(package)}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    found = subprocess.run([*pip, "--no-binary", ":all:", "--dest", str(folder), wanted], check=False)
    archive = next(folder.glob(f"{package}-*.tar.gz"), None)
    if archive is None:
        print(f"{wanted}: pip could not fetch its source distribution (it ended with {found.returncode})")
        return None
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def prepare(suite: Suite, source: Path) -> tuple[list[str], set[str]]:
    """Set the tests up; gives the files to run, and the models that they name."""
    (source / "tests" / "conftest.py").write_text(
        CONFTEST.format(package=suite.package, client=suite.sync_client, left_out=dict(suite.left_out))
    )
    (source / "ours.ini").write_text(INI)
    files, models = [], set(MODELS)
    for name, path in suite.files.items():
        file = source / "tests" / "api_resources" / name
        if not is_served(path):
            print(f"{suite.package}: {name} is left out: the gateway has no {path}")
            continue
        text = file.read_text()
        for pattern, (replacement, reason) in suite.edits.items():
            text, count = re.subn(pattern, replacement, text)
            if count:
                print(f"{suite.package}: {name}: {count} × {pattern} changed: {reason}")
        file.write_text(text)
        files.append(str(file.relative_to(source)))
        models |= set(re.findall(r'\bmodel="([^"]+)"', text))
    return files, models


async def run(suite: Suite, folder: Path) -> int:
    """Run one suite against a gateway of its own; gives pytest's exit code."""
    source = fetch(suite.package, folder)
    if source is None:
        return OFFLINE
    files, models = prepare(suite, source)
    (folder / "gateway").mkdir()
    async with gateway(folder / "gateway", Rehearsal("main"), names=sorted(models), slots={"online": 64}) as gate:
        environment = os.environ | {"TEST_API_BASE_URL": gate.url if suite.at_v1 else gate.root}
        options = [
            "-c",
            "ours.ini",
            "-q",
            "-rsf",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            "--no-header",
        ]
        # By itself, so that the SDK is the installed one and not the folder `src` beside its tests.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pytest", *options, *files, cwd=source, env=environment
        )
        code = await process.wait()
        await gate.at_rest()
    return code


def main() -> int:
    """Run every suite."""
    codes = []
    for suite in SUITES:
        with tempfile.TemporaryDirectory() as folder:
            codes.append(asyncio.run(run(suite, Path(folder))))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
