"""Charges as rows of FOCUS 1.4, the FinOps Open Cost and Usage Specification: a day, a name, a price and a kind each.

Source: the dataset Cost and Usage at the tag v1.4 of github.com/FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec (CC BY
4.0). The columns are those that it makes mandatory, the conditional ones that apply here, and our own under `x_`. Costs
are exact decimals; list, contracted, billed and effective cost are the same, since a charge knows one price.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from twolane.domain.money import decimal_string

DECIMAL, INSTANT, TEXT = "decimal", "instant", "text"

COLUMNS: Mapping[str, str] = {
    "BilledCost": DECIMAL, "BillingAccountId": TEXT, "BillingAccountName": TEXT, "BillingCurrency": TEXT,
    "BillingPeriodEnd": INSTANT, "BillingPeriodStart": INSTANT, "ChargeCategory": TEXT, "ChargeClass": TEXT,
    "ChargeDescription": TEXT, "ChargeFrequency": TEXT, "ChargePeriodEnd": INSTANT, "ChargePeriodStart": INSTANT,
    "ConsumedQuantity": DECIMAL, "ConsumedUnit": TEXT, "ContractedCost": DECIMAL, "ContractedUnitPrice": DECIMAL,
    "EffectiveCost": DECIMAL, "HostProviderName": TEXT, "InvoiceIssuerName": TEXT, "ListCost": DECIMAL,
    "ListUnitPrice": DECIMAL, "PricingCategory": TEXT, "PricingQuantity": DECIMAL, "PricingUnit": TEXT,
    "ResourceId": TEXT, "ResourceName": TEXT, "ResourceType": TEXT, "ServiceCategory": TEXT, "ServiceName": TEXT,
    "ServiceProviderName": TEXT, "ServiceSubcategory": TEXT, "SkuId": TEXT, "SkuMeter": TEXT, "SkuPriceDetails": TEXT,
    "SkuPriceId": TEXT, "SubAccountId": TEXT, "SubAccountName": TEXT, "Tags": TEXT,
    "x_AgentName": TEXT, "x_KeyName": TEXT, "x_Lane": TEXT, "x_ModelName": TEXT, "x_PriceId": TEXT,
    "x_WorkflowName": TEXT,
}  # fmt: skip
"""Every column, in its order, with its type."""

_MILLION = 1_000_000
_OURS = "twolane"
"""Who charges for what no upstream does: tools."""
_COUNTED = {"calls": "Requests", "request": "Requests", "web_search": "Requests", "accelerator_us": "Seconds"}
"""What is not counted in tokens."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A row of the roll-up `charge_total`; see the schema. Empty is none."""

    day: str
    tenant: str
    api_key: str
    workflow: str
    agent: str
    lane: str
    upstream: str
    model: str
    price: str
    kind: str
    unit_pico: int
    quantity: int
    cost_pico: int


def row_of(charge: Charge, *, currency: str, provider: str) -> dict[str, str | None]:
    """A charge as FOCUS tells it; `provider` is who makes its upstream available. None is null."""
    cost, unit = decimal_string(charge.cost_pico), _COUNTED.get(charge.kind, "Tokens")
    day = date.fromisoformat(charge.day)
    month = day.replace(day=1)
    account, sku = charge.upstream or _OURS, f"{charge.model or _OURS}/{charge.kind}"
    consumed = _millionths(charge.quantity) if unit == "Seconds" else str(charge.quantity)
    if charge.unit_pico * charge.quantity != charge.cost_pico:  # nobody knows what one cost: the money is counted
        priced, per, unit_price, category = cost, currency, "1.00", "Other"
    elif unit == "Tokens":
        priced, per, category = _millionths(charge.quantity), f"{_MILLION} Tokens", "Standard"
        unit_price = decimal_string(charge.unit_pico * _MILLION)
    else:
        priced, per, category, unit_price = str(charge.quantity), unit, "Standard", decimal_string(charge.unit_pico)
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), cost),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), unit_price),
        **dict.fromkeys(("HostProviderName", "InvoiceIssuerName", "ServiceProviderName"), provider or _OURS),
        **dict.fromkeys(("ChargeClass", "ResourceName", "SkuPriceDetails")),  # nothing corrects, is named or detailed
        "BillingAccountId": account,
        "BillingAccountName": account,
        "BillingCurrency": currency,
        "BillingPeriodStart": _midnight(month),
        "BillingPeriodEnd": _midnight((month + timedelta(days=31)).replace(day=1)),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{charge.kind} of {charge.model or charge.agent or _OURS}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _midnight(day),
        "ChargePeriodEnd": _midnight(day + timedelta(days=1)),
        "ConsumedQuantity": consumed,
        "ConsumedUnit": unit,
        "PricingCategory": category,
        "PricingQuantity": priced,
        "PricingUnit": per,
        "ResourceId": charge.upstream or None,
        "ResourceType": "Upstream" if charge.upstream else None,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model inference" if charge.upstream else "Tools",
        "ServiceSubcategory": "Generative AI" if charge.upstream else "Other (AI and Machine Learning)",
        "SkuId": sku,
        "SkuMeter": charge.kind,
        "SkuPriceId": f"{sku}/{charge.price or 'unnamed'}/{unit_price}",
        "SubAccountId": charge.tenant,
        "SubAccountName": charge.tenant,
        "Tags": _tags({"agent": charge.agent, "key": charge.api_key, "workflow": charge.workflow}),
        "x_AgentName": charge.agent or None,
        "x_KeyName": charge.api_key or None,
        "x_Lane": charge.lane,
        "x_ModelName": charge.model or None,
        "x_PriceId": charge.price or None,
        "x_WorkflowName": charge.workflow or None,
    }


def _midnight(day: date) -> str:
    return f"{day}T00:00:00Z"


def _millionths(quantity: int) -> str:
    """A quantity in millions, exactly."""
    whole, part = divmod(quantity, _MILLION)
    return f"{whole}.{part:06d}".rstrip("0").rstrip(".")


def _tags(names: Mapping[str, str]) -> str | None:
    """Under the prefix that FOCUS asks of tags whose keys no user chose."""
    tags = {f"twolane/{key}": name for key, name in names.items() if name}
    return json.dumps(tags, ensure_ascii=False) if tags else None
