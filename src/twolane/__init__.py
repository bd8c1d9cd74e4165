"""Twolane: the resource layer under an organisation's AI. Two lanes, one door, one ledger.

Public names only; everything else is imported from its module. Names are looked up on first use, so that importing the
package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twolane.batch.item import Item
    from twolane.batch.tools import Tool, tool
    from twolane.batch.workflow import Agent, Prompt, Workflow, agent, workflow
    from twolane.domain.document import Document, Quote
    from twolane.domain.money import Money
    from twolane.errors import (
        BudgetExceeded,
        ConfigError,
        HandoffRefused,
        Killed,
        LaneFull,
        OutOfTime,
        Refused,
        SwitchTripped,
        TwolaneError,
        UpstreamError,
    )
    from twolane.platform import Platform, RunSummary

_HOMES = {
    "Agent": "batch.workflow", "Item": "batch.item", "Prompt": "batch.workflow", "Workflow": "batch.workflow",
    "Tool": "batch.tools", "agent": "batch.workflow", "tool": "batch.tools", "workflow": "batch.workflow",
    "Document": "domain.document", "Quote": "domain.document", "Money": "domain.money",
    "BudgetExceeded": "errors", "ConfigError": "errors", "HandoffRefused": "errors", "Killed": "errors",
    "LaneFull": "errors", "OutOfTime": "errors", "Refused": "errors", "SwitchTripped": "errors",
    "TwolaneError": "errors", "UpstreamError": "errors",
    "Platform": "platform", "RunSummary": "platform",
}  # fmt: skip

__all__ = [
    "Agent",
    "BudgetExceeded",
    "ConfigError",
    "Document",
    "HandoffRefused",
    "Item",
    "Killed",
    "LaneFull",
    "Money",
    "OutOfTime",
    "Platform",
    "Prompt",
    "Quote",
    "Refused",
    "RunSummary",
    "SwitchTripped",
    "Tool",
    "TwolaneError",
    "UpstreamError",
    "Workflow",
    "agent",
    "tool",
    "workflow",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'twolane' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"twolane.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
