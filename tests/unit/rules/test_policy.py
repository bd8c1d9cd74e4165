"""The policy: how it is read, how values are read from quotes, and what follows for a contract."""

import json
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.errors import ConfigError
from twolane.rules.policy import QUESTIONS, Breach, Policy, Severity, Status, apply, decide, parse
from twolane.rules.quantities import Quantity, read_days, read_law, read_money, read_months, read_percent


def policy(**keys: object) -> Policy:
    """A policy of one rule, which these keys complete or change."""
    rule: dict[str, object] = {
        "id": "the-rule",
        "title": "A rule",
        "question": "payment_terms",
        "severity": "medium",
        "advice": "Ask.",
    }
    return parse({"rule": [rule | keys]})


def outcome(rules: Policy, quote: str | None, *, kind: str | None = "goods") -> Status | None:
    """What the policy's only rule says about this passage on its question; None when it is content."""
    breaches = apply(rules, kind=kind, facts={rules.rules[0].question: quote})
    return breaches[0].status if breaches else None


# --------------------------------------------------------------------------------------------------- reading values


@pytest.mark.parametrize(
    ("quote", "days"),
    [
        ("within 30 days of receipt", [30]),
        ("within thirty days of receipt", [30]),
        ("within ninety (90) days", [90]),
        ("within 90 (ninety) days", [90]),
        ("within forty-five (45) calendar days", [45]),
        ("within\nforty-five\n  days", [45]),
        ("one hundred and twenty days' notice", [120]),
        ("a 30-day period", [30]),
        ("on three months' notice", [90]),
        ("two weeks before", [14]),
        ("for two (2) years", [730]),
        ("thirty (30) business days", [42]),
        ("four working days", [6]),
        ("payment is due net 60", [60]),
        ("30 to 60 days", [30, 60]),
        ("30-60 days", [30, 60]),
        ("thirty to sixty days", [30, 60]),
        ("thirty (30) or sixty (60) days", [30, 60]),
        ("within 30 days, or 10 days for small sums", [30, 10]),
    ],
)
def test_days_are_read_from_figures_and_words(quote: str, days: list[int]) -> None:
    assert [value.amount for value in read_days(quote)] == days


@pytest.mark.parametrize(
    "quote",
    [
        "within a reasonable time",
        "promptly after receipt",
        "within thirty (60) days",
        "within 45 (fifty-four) days",
        "within two and a half months",
        "within 1.500 days",
        "within 1,5 months",
        "thirty and sixty days",
        "30 days from the end of the month",
        "within a month",
    ],
)
def test_what_is_unclear_about_days_is_not_read(quote: str) -> None:
    assert read_days(quote) == ()


@pytest.mark.parametrize(
    ("quote", "months"),
    [
        ("for 36 months", ["36"]),
        ("for three (3) years", ["36"]),
        ("a five-year term", ["60"]),
        ("for ninety days", ["3"]),
        ("for 365 days", ["12.2"]),
        ("until 31 December 2027", []),
    ],
)
def test_months_are_read_from_years_months_and_days(quote: str, months: list[str]) -> None:
    assert [value.amount for value in read_months(quote)] == [Decimal(text) for text in months]


@pytest.mark.parametrize(
    ("quote", "percents"),
    [
        ("by at most 5%", ["5"]),
        ("by five percent (5%)", ["5", "5"]),
        ("by five (5) per cent", ["5"]),
        ("one hundred and fifty per cent of the Charges", ["150"]),
        ("0.5 % per week up to 10 %", ["0.5", "10"]),
        ("2.5 percent", ["2.5"]),
        ("two point five percent", []),
        ("2,5%", []),
        ("the fees paid in the last year", []),
    ],
)
def test_percentages_are_read_exactly_or_not_at_all(quote: str, percents: list[str]) -> None:
    assert [value.amount for value in read_percent(quote)] == [Decimal(text) for text in percents]


@pytest.mark.parametrize(
    ("quote", "amounts"),
    [
        ("EUR 1,000,000", ["EUR 1,000,000"]),
        ("€ 1 000 000", ["EUR 1,000,000"]),
        ("1,000,000.50 euros", ["EUR 1,000,000.5"]),
        ("one million euros (EUR 1,000,000)", ["EUR 1,000,000", "EUR 1,000,000"]),
        ("two million five hundred thousand US dollars", ["USD 2,500,000"]),
        ("US$2.5 million", ["USD 2,500,000"]),
        ("$750,000", ["USD 750,000"]),
        ("C$750,000", ["CAD 750,000"]),
        ("£5m", ["GBP 5,000,000"]),
        ("four hundred thousand pounds sterling", ["GBP 400,000"]),
        ("EUR 750.000", []),
        ("EUR 1.000.000,00", []),
        ("a substantial sum", []),
    ],
)
def test_money_is_read_with_its_currency_or_not_at_all(quote: str, amounts: list[str]) -> None:
    assert [str(value) for value in read_money(quote)] == amounts


@pytest.mark.parametrize(
    ("quote", "places"),
    [
        ("governed by the laws of England and Wales", ["England and Wales"]),
        ("governed by English law", ["England and Wales"]),
        ("under the laws of the State of New York, without regard to conflict of laws rules", ["New York"]),
        ("Governing law: New York law applies", ["New York"]),
        ("the law of the Federal Republic of Germany; German law alone", ["Germany"]),
        ("law applicable in France", ["France"]),
        ("the laws of the Cayman Islands", ["Cayman Islands"]),
        ("the laws of Ireland and Scotland", ["Ireland", "Scotland"]),
        ("the law that the arbitrators see fit to apply", []),
        ("Common law and equity", []),
    ],
)
def test_a_jurisdiction_is_read_by_name_or_adjective(quote: str, places: list[str]) -> None:
    assert list(read_law(quote, ["New York"])) == places


@given(st.integers(min_value=1, max_value=9999))
def test_any_whole_number_is_read_the_same_with_or_without_separators(number: int) -> None:
    assert read_days(f"{number} days") == read_days(f"{number:,} days") == (Quantity(Decimal(number), "days"),)


@given(st.text(max_size=300))
def test_no_text_breaks_a_reader(text: str) -> None:
    for read in (read_days, read_months, read_percent, read_money):
        assert all(value.amount >= 0 for value in read(text))
    assert all(read_law(text))


# ---------------------------------------------------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("quote", "expected"),
    [
        ("within 30 days", None),
        ("within 60 days", None),
        ("within 29 days", "breach"),
        ("within 61 days", "breach"),
        ("within 10 days, or 14 days for large sums", "breach"),
        ("within 30 days, or 10 days for small sums", "unreadable"),
        ("within thirty (60) days", "unreadable"),
        ("in due course", "unreadable"),
        (None, None),
        ("  ", None),
    ],
)
def test_a_value_is_weighed_against_both_limits(quote: str | None, expected: str | None) -> None:
    assert outcome(policy(value="days", min=30, max=60), quote) == expected


def test_a_missing_passage_breaks_a_rule_that_requires_it() -> None:
    required = policy(require="present", value="days", max=60)
    assert outcome(required, None) == "breach"
    assert apply(required, kind="goods", facts={})[0].quote is None


def test_a_passage_breaks_a_rule_that_forbids_it_unless_its_wording_is_allowed() -> None:
    absent = policy(question="exclusivity", require="absent", allow=["non-exclusive"])
    assert outcome(absent, None) is None
    assert outcome(absent, "The Buyer buys from nobody else.") == "breach"
    assert outcome(absent, "This Agreement is non-exclusive.") is None


def test_phrases_are_found_across_lines_and_cases_but_only_as_whole_words() -> None:
    forbidden = policy(forbid=["sole discretion"])
    assert outcome(forbidden, "at its SOLE\n   discretion") == "breach"
    assert outcome(forbidden, "at its sole discretionary desk") is None


def test_allowed_wording_is_struck_out_before_forbidden_words_are_sought() -> None:
    renewal = policy(question="renewal", forbid=["automatically"], allow=["not renew automatically"])
    assert outcome(renewal, "It does not renew automatically.") is None
    assert outcome(renewal, "It does not renew automatically, but the annex renews automatically.") == "breach"


def test_one_demanded_phrase_is_enough() -> None:
    demanding = policy(question="assignment", demand=["consent", "approval"])
    assert outcome(demanding, "only with written approval") is None
    assert outcome(demanding, "to anybody") == "breach"


def test_an_allowed_wording_needs_no_value_but_does_not_hide_one() -> None:
    rise = policy(question="price_changes", value="percent", max=5, allow=["are fixed"])
    assert outcome(rise, "Prices are fixed.") is None
    assert outcome(rise, "Prices are fixed for a year and then rise by 12%.") == "breach"
    assert outcome(rise, "Prices follow the market.") == "unreadable"


def test_money_in_a_currency_without_a_limit_goes_to_a_person() -> None:
    cap = policy(question="liability_cap", value="money", min=["EUR 500000", "USD 600,000"])
    assert outcome(cap, "limited to EUR 500,000") is None
    assert outcome(cap, "limited to $599,999.99") == "breach"
    assert outcome(cap, "limited to CHF 9,000,000") == "unreadable"


def test_a_law_off_the_list_is_a_breach_and_no_law_at_all_is_unreadable() -> None:
    law = policy(question="governing_law", value="law", one_of=["Ireland", "England and Wales"])
    assert outcome(law, "Irish law applies") is None
    assert outcome(law, "the laws of Panama") == "breach"
    assert outcome(law, "the laws of Ireland and Panama") == "unreadable"
    assert outcome(law, "the law of the seat") == "unreadable"


def test_a_rule_for_some_kinds_is_silent_about_others_and_asks_a_person_when_the_kind_is_unknown() -> None:
    rule = policy(require="present", applies_to=["software"])
    assert outcome(rule, None, kind="software") == "breach"
    assert outcome(rule, None, kind="goods") is None
    assert outcome(rule, None, kind=None) == "unreadable"
    assert outcome(rule, None, kind="lease") == "unreadable"


def test_a_breach_carries_what_was_found_and_what_was_expected() -> None:
    rules = policy(value="days", min=30, max=60)
    assert apply(rules, kind="goods", facts={"payment_terms": "within ninety (90) days"}) == (
        Breach(
            rule="the-rule",
            title="A rule",
            question="payment_terms",
            severity="medium",
            quote="within ninety (90) days",
            found="90 days",
            expected="at least 30 days; at most 60 days",
            advice="Ask.",
            status="breach",
        ),
    )


def _breach(severity: Severity, status: Status = "breach") -> Breach:
    rules = policy(severity=severity, require="present", applies_to=["goods"])
    return apply(rules, kind="goods" if status == "breach" else None, facts={})[0]


@pytest.mark.parametrize(
    ("breaches", "decision"),
    [
        ([], "accept"),
        ([_breach("low"), _breach("low")], "accept"),
        ([_breach("medium")], "negotiate"),
        ([_breach("high"), _breach("high")], "negotiate"),
        ([_breach("high")] * 3, "reject"),
        ([_breach("critical")], "reject"),
        ([_breach("low", "unreadable")], "negotiate"),
        ([_breach("critical", "unreadable")], "negotiate"),
    ],
)
def test_severities_decide_and_nothing_unread_is_ever_accepted(breaches: list[Breach], decision: str) -> None:
    assert decide(breaches) == decision


# -------------------------------------------------------------------------------------------------- reading a policy


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"questoin": "term"}, "did you mean 'question'?"),
        ({"question": "payment_term"}, "did you mean 'payment_terms'?"),
        ({"severity": "hihg", "require": "present"}, "did you mean 'high'?"),
        ({"require": "presnt"}, "did you mean 'present'?"),
        ({"value": "day", "max": 3}, "did you mean 'days'?"),
        ({"applies_to": ["softwares"]}, "did you mean 'software'?"),
        ({"value": "money", "max": "ERU 5"}, "did you mean 'EUR'?"),
        ({"value": "money", "max": "EUR five"}, "can't be read"),
        ({"value": "money", "max": 5}, "list of texts"),
        ({"value": "money", "max": ["EUR 5", "EUR 6"]}, "names a currency twice"),
        ({"value": "days", "max": "60"}, "a number of days"),
        ({"value": "days", "max": True}, "a number of days"),
        ({"value": "days", "min": 61, "max": 60}, "min is above max"),
        ({"value": "days"}, "needs min or max"),
        ({"max": 60}, "max needs value"),
        ({"value": "law"}, "needs one_of"),
        ({"one_of": ["Ireland"]}, "one_of goes with"),
        ({"require": "absent", "forbid": ["x"]}, "must be absent"),
        ({"forbid": "sole discretion"}, "list of texts"),
        ({"advice": ""}, "advice is a text"),
        ({}, "checks nothing"),
    ],
)
def test_a_mistake_in_a_rule_is_refused_and_named(keys: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        policy(**keys)
    assert complaint in str(refusal.value)
    assert "the-rule" in str(refusal.value)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({}, "at least one [[rule]]"),
        ({"rules": []}, "did you mean 'rule'?"),
        ({"rule": ["x"]}, "a rule is a table"),
        ({"rule": [{"id": "a"}]}, "lacks title, question, severity, advice"),
    ],
)
def test_a_mistake_in_the_file_is_refused_and_named(table: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(table)
    assert complaint in str(refusal.value)


def test_two_rules_of_one_id_are_refused() -> None:
    rule = {
        "id": "a",
        "title": "A",
        "question": "term",
        "severity": "low",
        "advice": "Ask.",
        "require": "present",
    }
    with pytest.raises(ConfigError, match="two rules have the id 'a'"):
        parse({"rule": [rule, rule]})


# ------------------------------------------------------------------------------------------------ the shipped policy


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Policy:
    return parse(tomllib.loads((repository / "examples" / "policy.toml").read_text("utf-8")))


def test_the_packaged_policy_is_the_one_of_the_examples(repository: Path) -> None:
    packaged = repository / "src" / "twolane" / "flows" / "policy.toml"
    assert packaged.read_bytes() == (repository / "examples" / "policy.toml").read_bytes()


def test_the_shipped_policy_covers_what_matters_and_advises_in_one_sentence(shipped: Policy) -> None:
    assert len(shipped.rules) >= 14
    assert {rule.question for rule in shipped.rules} == set(QUESTIONS) - {"effective_date"}
    assert all(rule.advice.endswith(".") and rule.advice.count(".") == 1 for rule in shipped.rules)


# These two have no breach in these passages, and nobody may wave them through: a typing error in the period for
# payment ("forty-five (54) days"), and a cap at "the fees paid" that names no percentage.
FOR_A_PERSON = {"20-medical-gloves.txt": ["payment-days"], "22-bridge-inspection.pdf": ["liability-cap-share"]}


def test_the_gold_facts_yield_exactly_the_gold_breaches(repository: Path, shipped: Policy) -> None:
    gold = json.loads((repository / "examples" / "gold.json").read_text("utf-8"))
    auditable = {file: entry for file, entry in gold.items() if not entry["quarantine"]}
    assert len(auditable) == 22
    for file, entry in auditable.items():
        found = apply(shipped, kind=entry["kind"], facts=entry["facts"])
        assert sorted(b.rule for b in found if b.status == "breach") == sorted(entry["breaches"]), file
        assert [b.rule for b in found if b.status == "unreadable"] == FOR_A_PERSON.get(file, []), file


def test_every_decision_occurs_among_the_examples(repository: Path, shipped: Policy) -> None:
    gold = json.loads((repository / "examples" / "gold.json").read_text("utf-8"))
    entries = [entry for entry in gold.values() if not entry["quarantine"]]
    decisions = {decide(apply(shipped, kind=entry["kind"], facts=entry["facts"])) for entry in entries}
    assert decisions == {"accept", "negotiate", "reject"}
