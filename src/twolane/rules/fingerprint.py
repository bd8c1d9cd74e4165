"""What makes two steps "the same": everything that could change the answer, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twolane.domain.canonical import canonical_json
from twolane.domain.records import Message, ReplySchema

FORMAT = 1


def fingerprint(
    *,
    tenant: str,
    agent: str,
    messages: Sequence[Message],
    schema: ReplySchema,
    candidates: Sequence[Mapping[str, object]],
    max_tokens: int,
    temperature: float,
    sample: str,
    tools: Sequence[Mapping[str, object]] = (),
    turns: Sequence[Mapping[str, object]] = (),
) -> bytes:
    """Canonical bytes of what a step would ask; the caller keys and hashes them.

    `candidates` are the route's possible models by kind and name: its definition, not its decision. Validators are not
    in it (stored outputs are validated again), nor are addresses, keys, slots or prices. `sample` tells apart what
    is asked several times on purpose; for answers drawn at random (temperature > 0) it holds run and item, so that
    they are replayed inside one run and never reused by another. `tools` are told to the model, and `turns` follow the
    messages: its calls and their results.
    """
    return canonical_json(
        {
            "format": FORMAT,
            "tenant": tenant,
            "agent": agent,
            "messages": [[message.role, message.content] for message in messages],
            "schema": [schema.name, schema.schema],
            "candidates": list(candidates),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "sample": sample,
            **({"tools": list(tools), "turns": list(turns)} if tools else {}),
        }
    )
