"""Every export keeps the rules of FOCUS 1.4.

They are those of the specification's requirements model, model-1.4.json of the release v1.4 of
github.com/FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec (Creative Commons Attribution 4.0), in our own words and under its
numbers: of the 688 rules in force for the dataset Cost and Usage those about columns that are exported here which rows
can break. What is no column of ours, speaks of taxes, purchases or corrections, or allows something, is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Context, Decimal

from hypothesis import given
from hypothesis import strategies as st

from twolane.domain.money import PICO
from twolane.rules.focus import COLUMNS, Charge, row_of

Row = Mapping[str, str | None]

MANDATORY = (
    "BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd BillingPeriodStart ChargeCategory "
    "ChargeClass ChargeDescription ChargePeriodEnd ChargePeriodStart ContractedCost EffectiveCost HostProviderName "
    "InvoiceIssuerName ListCost PricingQuantity PricingUnit ServiceCategory ServiceName ServiceProviderName"
)
RECOMMENDED = "ChargeFrequency ServiceSubcategory"
CONDITIONAL = {
    "usage is measured": "ConsumedQuantity ConsumedUnit",
    "prices may be negotiated": "ContractedUnitPrice",
    "prices are listed": "ListUnitPrice",
    "there are units and a list of prices": "SkuId SkuMeter SkuPriceDetails SkuPriceId",
    "there is more than one pricing category": "PricingCategory",
    "an accelerator may be what costs": "ResourceId ResourceName ResourceType",
    "there are sub-accounts": "SubAccountId SubAccountName",
    "charges have tags": "Tags",
}
"""The conditions that hold. These do not, so 27 columns are not there: allocation, availability zones, regions,
capacity reservations, commitments, contracts, invoices we know of, several types of account, several currencies."""

RULES = {
    "BilledCost": "decimal 1 2, given 3",
    "BillingAccountId": "given 1, text 2 3",
    "BillingAccountName": "text 1 2, given 3",
    "BillingCurrency": "text 1 2, currency 3 6, given 4",
    "BillingPeriodEnd": "instant 1 2, given 3",
    "BillingPeriodStart": "instant 1 2, given 3",
    "ChargeCategory": "text 1, given 2, allowed 3 4",
    "ChargeClass": "text 1, null 3",
    "ChargeDescription": "text 1 2, given 3",
    "ChargeFrequency": "text 1, given 2, allowed 3",
    "ChargePeriodEnd": "instant 1 2, given 3",
    "ChargePeriodStart": "instant 1 2, given 3",
    "ConsumedQuantity": "decimal 1 2, given 6",
    "ConsumedUnit": "text 1 2, unit 3, given 6",
    "ContractedCost": "decimal 1 2, given 3, product 11",
    "ContractedUnitPrice": "decimal 2 3, given 6 15, positive 9",
    "EffectiveCost": "decimal 1 2, given 3, like:BilledCost 15",
    "HostProviderName": "text 1 2, given 6, like:ServiceProviderName 10",
    "InvoiceIssuerName": "text 1 2, given 3",
    "ListCost": "decimal 1 2, given 3, product 11",
    "ListUnitPrice": "decimal 1 2, given 5 13, positive 8",
    "PricingCategory": "text 1, given 4, allowed 7, priced 8 11",
    "PricingQuantity": "decimal 1 2, given 5",
    "PricingUnit": "text 1 2, unit 3, given 6",
    "ResourceId": "text 1 2",
    "ResourceName": "text 1 2, null 4",
    "ResourceType": "text 1 2, with:ResourceId 4 5",
    "ServiceCategory": "text 1, given 2, allowed 3",
    "ServiceName": "text 1 2, given 3, one:ServiceCategory 5, one:ServiceSubcategory 8",
    "ServiceProviderName": "text 1 2, given 3",
    "ServiceSubcategory": "text 1, given 2, allowed 3 4",
    "SkuId": "text 1 2, given 5",
    "SkuMeter": "text 1 2, given 5",
    "SkuPriceDetails": "pairs 1 24, text 25",
    "SkuPriceId": "text 1 2, given 5, one:SkuId 8",
    "SubAccountId": "text 1 2, given 5",
    "SubAccountName": "text 1 2, given 5",
    "Tags": "prefixed 12, pairs 1 18, text 19",
}
"""What must be so, and the numbers of the rules that say it: "given 3" of BilledCost is CAU-BilledCost-C-003-M. Where
the model's condition and its sentence differ (ConsumedQuantity 6), the sentence is held. An upstream has no name to
show but its id, so ResourceName 4 asks for null."""

ALLOWED = {
    "ChargeCategory": {"Usage"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {
        "AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing",
        "Other (AI and Machine Learning)",
    },
}  # fmt: skip
"""Of what the specification allows, what may be said of a model's or a tool's use."""


def shaped(pattern: str) -> Callable[[str], bool]:
    return lambda value: re.fullmatch(pattern, value) is not None


def pairs(value: str) -> bool:
    """A JSON object of distinct keys and single values."""
    try:
        told = json.loads(value, object_pairs_hook=lambda found: found)
    except ValueError:
        return False
    keys = [key for key, _ in told] if isinstance(told, list) else [None, None]
    return len(set(keys)) == len(keys) and not [key for key, one in told if isinstance(one, list)]


CHECKS: Mapping[str, Callable[[str], bool]] = {
    "text": lambda value: bool(value.strip()),
    "decimal": shaped(r"-?[0-9]+(\.[0-9]+)?"),
    "positive": lambda value: not value.startswith("-"),
    "instant": shaped(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z"),
    "currency": shaped("[A-Z]{3}"),
    "unit": shaped("([1-9][0-9]* )?[A-Z][A-Za-z]*"),
    "pairs": pairs,
    "prefixed": lambda value: not pairs(value) or all(key.startswith("twolane/") for key in json.loads(value)),
}
"""What is asked of a value that is there."""


def holds(check: str, row: Row, column: str) -> bool:
    value = row[column]
    name, _, other = check.partition(":")
    match name:
        case "given" | "null":
            return (value is None) == (name == "null")
        case "allowed":
            return value in ALLOWED[column]
        case "like":
            return value == row[other]
        case "with":
            return (value is None) == (row[other] is None)
        case "priced":
            return (value == "Other") == (row["PricingUnit"] == row["BillingCurrency"])
        case "product":
            price, quantity = (row[each] or "" for each in (column.replace("Cost", "UnitPrice"), "PricingQuantity"))
            numbers = [Decimal(each) for each in (price, quantity, value or "") if CHECKS["decimal"](each)]
            return len(numbers) == 3 and Context(prec=60).multiply(*numbers[:2]) == numbers[2]
        case _:
            return value is None or CHECKS[name](value)


def broken(rows: Sequence[Row]) -> set[str]:
    """The rules that rows break: "BilledCost 3"."""
    found: set[str] = set()
    for column, rules in RULES.items():
        for check, *numbers in (rule.split() for rule in rules.split(", ")):
            if check.startswith("one:"):
                told = {(row[column], row[check[4:]]) for row in rows}
                held = len(told) == len({value for value, _ in told})
            else:
                held = all(holds(check, row, column) for row in rows)
            found.update(() if held else (f"{column} {number}" for number in numbers))
    return found


NAME = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12).filter(
    lambda name: name == name.strip()
)
CHARGES = st.builds(
    Charge,
    day=st.dates(max_value=date(9000, 1, 1)).map(str),
    tenant=NAME.filter(bool), api_key=NAME, workflow=NAME, agent=NAME, lane=st.sampled_from(["online", "batch"]),
    upstream=NAME, model=NAME, price=st.sampled_from(["", "0123456789ab"]),
    kind=st.sampled_from(["input", "cache_read", "output", "tokens", "calls", "accelerator_us"]),
    unit_pico=st.integers(0, 10**12), quantity=st.integers(0, 10**12), cost_pico=st.integers(0, 2**63 - 1),
)  # fmt: skip
A_CHARGE = Charge(
    "2026-12-31", "t", "", "w", "a", "batch", "up", "m", "p", "input", 50_000, 1_234_567, 50_000 * 1_234_567
)
EXACT = CHARGES.map(lambda charge: replace(charge, cost_pico=charge.unit_pico * charge.quantity))


def test_the_columns_are_those_of_focus_in_order_and_ours_come_after_them() -> None:
    theirs = sorted(" ".join((MANDATORY, RECOMMENDED, *CONDITIONAL.values())).split())
    assert theirs == list(RULES)
    assert list(COLUMNS) == theirs + sorted(set(COLUMNS) - set(theirs))
    assert all(re.fullmatch(r"x_([A-Z][a-z]+)+", name) for name in set(COLUMNS) - set(theirs))
    assert all(len(name) <= 50 for name in COLUMNS)


@given(st.lists(CHARGES | EXACT, min_size=1, max_size=4))
def test_every_export_keeps_the_rules(charges: list[Charge]) -> None:
    rows = [row_of(charge, currency="USD", provider="api.example.com") for charge in charges]
    assert broken(rows) == set()
    for row in rows:
        assert set(row) == set(COLUMNS)
        assert row["Tags"] != "{}"
        assert all(value is None or value.strip() for value in row.values())  # null, and nothing empty, for nothing


def test_each_rule_is_named_when_a_row_breaks_it() -> None:
    row = row_of(A_CHARGE, currency="USD", provider="api.example.com")
    wrong = (None, " ", "-1", "1,5", "Other", '{"agent": []}', '{"agent": "a"}')
    found = {rule for column in RULES for value in wrong for rule in broken([row, {**row, column: value}])}
    assert broken([row]) == set()
    assert found == {f"{column} {number}" for column, rules in RULES.items() for number in re.findall("[0-9]+", rules)}


@given(CHARGES | EXACT)
def test_money_and_quantity_are_exact(charge: Charge) -> None:
    row = row_of(charge, currency="USD", provider="")
    costs = {Decimal(row[name] or "") for name in ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")}
    assert costs == {Decimal(charge.cost_pico).scaleb(-12, Context(prec=40))}
    consumed = Decimal(row["ConsumedQuantity"] or "")
    assert consumed * (10**6 if row["ConsumedUnit"] == "Seconds" else 1) == charge.quantity
    assert int(Context(prec=60).multiply(costs.pop(), Decimal(PICO))) == charge.cost_pico


@given(EXACT, EXACT)
def test_the_id_of_a_price_tells_its_unit_price_and_has_one_sku(one: Charge, other: Charge) -> None:
    first, second = (row_of(each, currency="USD", provider="") for each in (one, other))
    if first["SkuPriceId"] == second["SkuPriceId"]:
        assert (first["SkuId"], first["ListUnitPrice"]) == (second["SkuId"], second["ListUnitPrice"])


def test_periods_are_the_day_and_its_month() -> None:
    row = row_of(A_CHARGE, currency="EUR", provider="gpu-1")
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z")
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")
    assert (row["PricingQuantity"], row["PricingUnit"], row["ListUnitPrice"]) == ("1.234567", "1000000 Tokens", "0.05")
    assert (row["ConsumedQuantity"], row["ConsumedUnit"], row["BilledCost"]) == ("1234567", "Tokens", "0.06172835")
