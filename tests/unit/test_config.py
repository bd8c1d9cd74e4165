"""One file, no surprises: what is not known is refused with the nearest match, and a secret is never written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from twolane.config import Config, load, resolve_secret
from twolane.domain.money import PICO
from twolane.errors import ConfigError
from twolane.rules.guards import DEFAULTS, Limits


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TWOLANE_CONFIG", raising=False)


NIGHTLY = """
[schedule.nightly]
flow = "contract-audit"
inputs = ["in"]
cron = "0 4 * * *"
"""
SMALL = """
[upstream.small]
kind = "openai"
url = "http://127.0.0.1:1/v1"
model = "m"
price = { input = "0.05", output = "0.08" }
"""


def config(text: str) -> Config:
    Path("twolane.toml").write_text(text, encoding="utf-8")
    return load()


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        config(text)
    return str(refused.value)


def test_no_file_at_all_is_the_embedded_default(tmp_path: Path) -> None:
    default = load()
    assert default.source is None
    assert default.store_path() == tmp_path / "twolane.db"
    assert (default.serve.host, default.currency) == ("127.0.0.1", "USD")
    assert set(default.upstream) == {"extractive"}
    assert set(default.route) == {"light", "heavy", "auto"}
    price = default.upstream["extractive"].price_of()
    assert price is not None
    assert (price.input, price.output) == (0, 0)


def test_a_file_in_the_working_directory_is_found_and_its_folder_is_the_base(tmp_path: Path) -> None:
    read = config('store = "sqlite:data/x.db"' + SMALL)
    assert read.source == tmp_path / "twolane.toml"
    assert read.store_path() == tmp_path / "data" / "x.db"
    assert set(read.upstream) == {"small", "extractive"}
    assert set(read.route) == {"light", "heavy", "auto"}


def test_a_name_of_the_file_wins_over_the_built_in_one() -> None:
    read = config(SMALL + '[route.auto]\nlight = "small"\n[upstream.light]\nkind = "rehearsal"\n')
    assert read.route["auto"].light == "small"
    assert set(read.route) == {"heavy", "auto"}
    assert read.upstream["light"].kind == "rehearsal"


@pytest.mark.parametrize("is_named_by_environment", [True, False])
def test_a_named_file_that_is_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, is_named_by_environment: bool
) -> None:
    if is_named_by_environment:
        monkeypatch.setenv("TWOLANE_CONFIG", "other.toml")
    with pytest.raises(ConfigError, match=r"other\.toml: there is no such file. Make one with: twolane init"):
        load(None if is_named_by_environment else "other.toml")


@pytest.mark.parametrize(
    "text, wrong, right",
    [
        ('stor = "sqlite:x.db"', "stor", "store"),
        ("[serve]\nprot = 1", "serve.prot", "port"),
        ("[serv]\nport = 1", "serv", "serve"),
        (SMALL + 'modle = "x"', "upstream.small.modle", "model"),
        (SMALL.replace("output =", "outptu ="), "upstream.small.price.outptu", "output"),
        (SMALL + "slots = { onlin = 3 }", "upstream.small.slots.onlin", "online"),
        (SMALL + "timeout = { first_token = 3 }", "upstream.small.timeout.first_token", "first_token_s"),
        (SMALL + "limit = { contxt = 300 }", "upstream.small.limit.contxt", "context"),
        ('[route.r]\nlight = "extractive"\nfalback = []', "route.r.falback", "fallback"),
        (
            '[route.r]\nlight = "extractive"\n[[route.r.rule]]\nwhen = {}\nuses = "extractive"',
            "route.r.rule.0.uses",
            "use",
        ),
        (NIGHTLY + "wth = {}", "schedule.nightly.wth", "with"),
        ('[budget."tenant:legal"]\nmony = "5"', "budget.tenant:legal.mony", "money"),
    ],
)
def test_an_unknown_key_is_refused_with_its_nearest_match_at_every_depth(text: str, wrong: str, right: str) -> None:
    message = refusal(text)
    assert f"{wrong}: there is no such key; did you mean '{right}'?" in message
    assert "twolane.toml" in message


def test_an_unknown_key_far_from_any_other_gets_the_list() -> None:
    assert "there are: drain_s, host, port" in refusal("[serve]\nzzzzzzzz = 1")


def test_the_files_own_place_is_not_a_key_of_it() -> None:
    assert "source: there is no such key" in refusal('source = "elsewhere.toml"')
    assert "source" not in refusal('zzz = "nothing is like it"')


def test_an_unknown_condition_of_a_rule_is_refused_with_those_there_are() -> None:
    message = refusal('[route.r]\nlight = "extractive"\n[[route.r.rule]]\nwhen = { flow = "x" }\nuse = "extractive"')
    assert "'workflow'" in message


@pytest.mark.parametrize(
    "text, words",
    [
        ('[serve]\nport = "many"', "serve.port: "),
        ("[serve]\nport = 70000", "serve.port: "),
        ("serve = 3", "serve: "),
        ("upstream = 3", "upstream: "),
        ("route = []", "route: "),
        ("budget = 1", "budget: "),
        ("[upstream]\nsmall = 3", "upstream.small: "),
        ('[upstream.small]\nkind = "opnai"', "upstream.small.kind: "),
        ('[upstream.small]\nkind = "openai"', 'needs url = "http(s)://…/v1"'),
        (SMALL.replace('model = "m"', ""), 'needs model = "…"'),
        (SMALL.replace("http:", "ftp:"), "needs url"),
        ('[upstream.e]\nkind = "extractive"\nurl = "http://x"', "it has no url and no key"),
        (SMALL.replace('"0.05"', "0.05"), "a float is not exact"),
        (SMALL.replace('"0.05"', '"0,05"'), "not an amount of money"),
        (SMALL.replace('"0.05"', '"0.0000001"'), "finer than"),
        (SMALL.replace('"0.05"', '"1000000.01"'), "more than 1,000,000 per million tokens. Write what a million"),
        (SMALL.replace('"0.05"', '"0.05", request = "100001"'), "a call may cost more than 100,000"),
        (SMALL.replace('"0.05"', '"0.05", accelerator_second = "3000"') + "accelerators = 1", "lower price.request"),
        ('[budget."tenant:a"]\nmoney = "-1"', "not an amount of money"),
        ('[budget."tenant:a"]\nmoney = "5 EUR"', "keeps USD"),
        ('[budget."tenant:a"]\nperiod = "week"', "budget.tenant:a.period"),
        ('[budget."tenat:a"]\nmoney = "1"', "a scope is tenant:NAME"),
        ('[budget."tenant"]\nmoney = "1"', "a scope is tenant:NAME"),
        ('[budget."key:alone"]\nmoney = "1"', "a scope is tenant:NAME"),
        ('[route.r]\nlight = "exttractive"', "did you mean 'extractive'?"),
        ('[route.extractive]\nlight = "extractive"', "both a route and an upstream"),
        (SMALL + "rate = { requests_per_minute = 1 }", "upstream.small.rate.requests_per_minute: "),
        (SMALL + "lend = 99", "there are only 8 online slots to lend"),
        ('store = "mysql://x"', "write sqlite:PATH or postgresql://"),
        ('store = "postgresql://me:secret@host/db"', "a password is written by reference only"),
        ('store = "postgresql://host/db?password=secret"', "a password is written by reference only"),
        ('store = "sqlite:"', "write sqlite:PATH"),
        (
            NIGHTLY.replace("0 4 * * *", "0 24 * * *"),
            "nightly.cron: '0 24 * * *' is no cron expression: bad hour",
        ),
        (NIGHTLY.replace("0 4 * * *", "@daily"), "schedule.nightly.cron: '@daily' has 1 fields; write five"),
        (NIGHTLY.replace('cron = "0 4 * * *"', ""), "schedule.nightly.cron: "),
        (NIGHTLY.replace('inputs = ["in"]', ""), "a schedule needs inputs"),
        (NIGHTLY + 'sql = "SELECT 1 AS id"', "sql and database belong together"),
        (NIGHTLY + 'sql = "SELECT 1"\ndatabase = "postgresql://me:secret@host/db"', "by reference only"),
        (NIGHTLY + 'budget = "5 EUR"', "keeps USD"),
        (NIGHTLY + 'budget = "0"', "can pay for nothing"),
        (NIGHTLY + 'tenant = "a b"', "schedule.nightly.tenant: "),
        ("[guard.cost-velocty]", "guard.cost-velocty: there is no such guard; did you mean 'cost-velocity'?"),
        ('[guard.cost-velocity]\npause = "3"', 'guard.cost-velocity: pause is written like "3x forecast"'),
        ('[guard.cost-velocity]\nkill = "2x"', "guard.cost-velocity: kill is not below pause"),
        ('[guard.cost-velocity]\nceiling = "0"', "a ceiling is more than 0"),
        ('[guard.runway]\npause = "2x"', "guard.runway: it takes no pause"),
        ('[guard.agent-loop]\nmode = "quiet"', "guard.agent-loop.mode: "),
        (NIGHTLY + "with = { quick = true }", "schedule.nightly.with.quick: "),
        (NIGHTLY.replace("nightly", '"--all"'), "a name has letters"),
        ('currency = "usd"', "currency: "),
        ("this is not TOML", "it is not valid TOML"),
    ],
)
def test_a_wrong_value_is_refused_and_its_key_is_named(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_file_that_is_not_text_is_refused() -> None:
    Path("twolane.toml").write_bytes(b"store = '\xff'")
    with pytest.raises(ConfigError, match="it cannot be read"):
        load()


# ── secrets ──

SECRET = "sk-0123456789abcdef"


def test_a_secret_is_taken_by_reference_only_and_no_message_repeats_it() -> None:
    message = refusal(SMALL + f'key = "{SECRET}"')
    assert "by reference only" in message
    assert SECRET not in message
    message = refusal(SMALL.replace("127.0.0.1", f"user:{SECRET}@127.0.0.1"))
    assert "a url holds no user" in message
    assert SECRET not in message


def test_a_secret_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_KEY", f"{SECRET}\n")
    (tmp_path / "key").write_text(f"{SECRET}\n")
    assert resolve_secret("env:SOME_KEY") == resolve_secret(f"file:{tmp_path}/key") == SECRET
    assert SECRET not in repr(config(SMALL + 'key = "env:SOME_KEY"'))


def test_a_secret_that_is_not_there_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMPTY_KEY", "")
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff" + SECRET.encode())
    for reference, words in (
        ("env:NO_SUCH_KEY", "NO_SUCH_KEY is not set"),
        ("env:EMPTY_KEY", "EMPTY_KEY is not set"),
        ("file:nowhere", "nowhere cannot be read"),
        ("file:empty", "empty is empty"),
        ("file:binary", "binary is not text"),
    ):
        with pytest.raises(ConfigError, match=words) as refused:
            resolve_secret(reference)
        assert SECRET not in str(refused.value)


# ── the environment ──


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOLANE_SERVE__PORT", "9000")
    monkeypatch.setenv("TWOLANE_STORE", "sqlite:/elsewhere/x.db")
    monkeypatch.setenv("TWOLANE_UPSTREAM__SMALL__SLOTS__BATCH", "3")
    monkeypatch.setenv("TWOLANE_UPSTREAM__SMALL__PRICE", '{ input = "1", output = "2" }')
    read = config(f'store = "sqlite:x.db"\n[serve]\nport = 1\n{SMALL}')
    assert read.serve.port == 9000
    assert read.store_path() == Path("/elsewhere/x.db")
    assert read.upstream["small"].slots.batch == 3
    price = read.upstream["small"].price_of()
    assert price is not None
    assert (price.input, price.output) == (PICO // 10**6, 2 * PICO // 10**6)


def test_a_variable_that_only_starts_alike_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOLANE_HOME", "/x")
    monkeypatch.setenv("TWOLANEX", "1")
    assert load().serve.port == 8080


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("TWOLANE_SERVE__PROT", "1", "did you mean 'port'?"),
        ("TWOLANE_SERVE__PORT", "many", "serve.port: "),
        ("TWOLANE_STORE__X", "1", "store is not a table"),
        ("TWOLANE_UPSTREAM__SMALL__KEY", SECRET, "by reference only"),
    ],
)
def test_a_wrong_variable_is_refused_like_a_wrong_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    message = refusal('store = "sqlite:x.db"' + SMALL)
    assert words in message
    assert SECRET not in message


def test_a_guards_section_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "twolane.toml"
    path.write_text(
        '[guard.cost-velocity]\nscope = "run"\npause = "3x forecast"\nkill = "10.5x forecast"\nceiling = "5"\n'
        '[guard.repetition]\nmode = "shadow"\n'
    )
    limits = load(path).guards()
    assert limits["cost-velocity"] == Limits(scope="run", pause=3, kill=10.5, ceiling_pico=5 * PICO)
    assert limits["repetition"] == Limits(mode="shadow")
    assert {name for name in limits if limits[name] != DEFAULTS[name]} == {"cost-velocity", "repetition"}
