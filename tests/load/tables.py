"""The online lane's figures in words: the tables of docs/benchmarks.md and the answer in docs/buyers.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.load.svg import milliseconds

Facts = dict[str, Any]  # Any: JSON
VARIANTS = {
    "lanes": "beside batch, in lanes",
    "lend": "beside batch, lanes that lend",
    "one line": "beside batch, one line for all",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _judged(value: float, promise: float, *, is_floor: bool = False) -> str:
    """Whether a promise is kept, in a word."""
    return "met" if (value >= promise if is_floor else value <= promise) else "not met"


def _spread(spread: Facts) -> str:
    return f"{milliseconds(spread['p50'])} / {milliseconds(spread['p99'])}"


def _first_token(figures: Facts) -> str:
    promises = {"ttft": (0.5, 5.0), "ttft200": (2.0, None)}
    rows, lines = [], []
    for name, (p50, p99) in promises.items():
        if name not in figures:
            continue
        facts = figures[name]
        for target, each in facts["targets"].items():
            if target == "direct":
                continue
            added = each["added_ttft_ms"]
            rows.append(
                [
                    str(facts["streams"]),
                    target,
                    f"{added['p50']:.2f} / {added['p99']:.2f} ms",
                    f"{each['load_sustained']:.2f}",
                    f"{each['cpu_s_per_1000']:.1f}",
                    f"{each['resident_mb']:.0f} MB",
                    str(each["errors"]),
                ]
            )
        added = facts["targets"]["twolane"]["added_ttft_ms"]
        promise = f"{facts['streams']} streams: ≤ {p50:g} ms p50 is {_judged(added['p50'], p50)}"
        lines.append(promise + (f", ≤ {p99:g} ms p99 is {_judged(added['p99'], p99)}" if p99 else ""))
    if not rows:
        return ""
    head = ["streams", "target", "added first token p50 / p99", "load sustained", "CPU s per 1,000", "memory", "errors"]
    rounds = next(figures[name]["rounds"] for name in promises if name in figures)
    return (
        "### First token\n\n![Time added to the first token](figures/added-ttft.svg)\n\n" + table(head, rows) + "\n"
        f"50 ms to the first token, 20 ms between tokens, 64 tokens; differences to direct within a round, median of\n"
        f"{rounds} rounds. Promises: {'; '.join(lines)}.\n\n"
        "Commands: `python tests/load/online.py ttft`, `python tests/load/online.py ttft200`\n"
    )


def _ceiling(figures: Facts) -> str:
    facts = figures.get("ceiling")
    if facts is None:
        return ""
    rows = [
        [
            target,
            f"{each['requests_per_second']:,.0f}",
            f"{each['cpu_s_per_1000']:.2f}" if "cpu_s_per_1000" in each else "–",
            f"{each['resident_mb']:.0f} MB" if "resident_mb" in each else "–",
            str(each["errors"]),
        ]
        for target, each in facts["targets"].items()
    ]
    ours = facts["targets"]["twolane"]["requests_per_second"]
    ratio = facts.get("ratio_to_nginx")
    told = f"; of nginx: {ratio:.2f} (promise 0.4: {_judged(ratio, 0.4, is_floor=True)})" if ratio is not None else ""
    return (
        "### Ceiling\n\nNothing waits: zero delay, 20 tokens a stream, 50 connections.\n\n"
        + table(["target", "streamed requests a second", "CPU s per 1,000", "memory", "errors"], rows)
        + f"\nPromise: 2,000 a second is {_judged(ours, 2000, is_floor=True)}{told}.\n\n"
        "Command: `python tests/load/online.py ceiling`\n"
    )


def _thousand(figures: Facts) -> str:
    facts = figures.get("thousand")
    if facts is None:
        return ""
    rows = [
        [
            f"`{each['model']}`",
            f"{each['requests']:,}",
            str(each["errors"]),
            f"{each['most_at_once_upstream']:,}",
            _spread(each["ttft_ms"]),
            f"{each['cpu_s_per_1000']:.1f}",
            f"{each['resident_mb']:.0f} MB",
        ]
        for each in (facts["slow"], facts["fast"])
    ]
    head = ["model", "requests", "errors", "most at once", "first token p50 / p99", "CPU s per 1,000", "memory"]
    return (
        f"### {facts['streams']:,} streams at once\n\n"
        "As a slow model (5 tokens a second in each stream), and as a fast one (50 a second in each, more than such a\n"
        "machine carries: late, but whole). Promise: no error.\n\n"
        + table(head, rows)
        + "\nCommand: `python tests/load/online.py thousand`\n"
    )


def _memory(figures: Facts) -> str:
    facts = figures.get("memory")
    if facts is None:
        return ""
    slope, errors = facts["slope_second_half_mb_per_100000"], facts["errors"]
    flat = {True: "flat", False: "not flat", None: "too few to say whether it stays flat"}[facts["is_flat"]]
    return (
        "### Memory\n\n![Resident memory over requests](figures/memory.svg)\n\n"
        f"{facts['start_mb']:.0f} MB at the start, at most {facts['max_mb']:.0f} MB over {facts['requests']:,} "
        f"streamed requests ({errors} errors); ≤ 120 MB is {_judged(facts['max_mb'], 120)}.\n"
        f"The second half grew by {slope:.1f} MB per 100,000 requests: {flat}."
        "\n\n"
        "Command: `python tests/load/online.py memory`\n"
    )


def _cancel(figures: Facts) -> str:
    facts = figures.get("cancel")
    if facts is None:
        return ""
    rows = [
        [
            moment,
            str(each["generations"]),
            f"{each['share']:.0%}",
            milliseconds(each["last_cancelled_after_ms"]),
            str(each["tokens_after_hangup"]),
            "nothing" if each["nothing_held"] else json.dumps(each["held_after"]),
        ]
        for moment, each in facts["moments"].items()
    ]
    head = ["the client hung up", "generations upstream", "cancelled within 1 s", "the last one after", "tokens after"]
    return (
        f"### Hang-ups\n\n{facts['clients']} clients each time. "
        "Promise: all generations are cancelled within a second, and nothing stays held.\n\n"
        + table([*head, "still held"], rows)
        + "\nCommand: `python tests/load/online.py cancel`\n"
    )


def _isolation(figures: Facts) -> str:
    facts = figures.get("isolation")
    if facts is None:
        return ""
    rows = []
    for name, each in facts["variants"].items():
        if "ttft_ms_idle" not in each:
            continue
        batch = each["batch"]
        busy = f"{batch['slots_busy']:.0%} ({batch['mean_in_flight']:.1f} calls)" if "slots_busy" in batch else "–"
        rows.append(
            [
                VARIANTS[name],
                _spread(each["ttft_ms_idle"]),
                _spread(each["ttft_ms_beside_batch"]),
                f"{each['ratio']['p50']:.2f} / {each['ratio']['p99']:.2f}",
                busy,
                f"{batch['calls_waiting']:,}",
            ]
        )
    lanes = facts["variants"]["lanes"]
    head = ["arrangement", "alone p50 / p99", "beside batch p50 / p99", "ratio", "batch slots busy", "calls waiting"]
    p99, busy_share = lanes["ratio"]["p99"], lanes["batch"]["slots_busy"]
    return (
        "### Isolation\n\n![First token online beside batch](figures/isolation.svg)\n\n" + table(head, rows) + "\n"
        f"An upstream of {facts['upstream_slots']} places; {facts['users']} people online who think "
        f"{facts['think_s']} s between two questions; a batch worker in a process\nof its own. One line: batch clients "
        "call like anybody, and the upstream serves in the order of arrival. Promises in lanes:\np99 ≤ 1.1 × alone is "
        f"{_judged(p99, 1.1)}; batch keeps ≥ 90 % of its slots busy is {_judged(busy_share, 0.9, is_floor=True)}.\n\n"
        "Command: `python tests/load/online.py isolation --lend`\n"
    )


def _scarcity(figures: Facts) -> str:
    facts = figures.get("scarcity")
    if facts is None:
        return ""
    minutes, refused = facts["requests_per_minute"], facts["refused_after_ms"]
    share_met = _judged(facts["share_429"], 0.01)
    rows = [
        [
            "refused by the upstream (429)",
            "≤ 1 %",
            f"{facts['share_429']:.1%} of {facts['upstream_requests']}",
            share_met,
        ],
        [
            "first token of accepted requests p50 / p99",
            f"as unloaded: {_spread(facts['ttft_ms_unloaded'])}",
            _spread(facts["ttft_ms_accepted"]),
            "",
        ],
        [
            "refusals arrive after p50 / p99",
            "≤ 50 ms",
            _spread(refused),
            _judged(refused["p99"], 50) if refused["n"] else "",
        ],
        ["accepted, of what was offered", "", f"{facts['share_accepted']:.1%} of {facts['offered']}", ""],
        ["accepted, of what the upstream takes", "", f"{facts['accepted_of_what_the_upstream_takes']:.1%}", ""],
    ]
    return (
        "### Scarcity\n\n![Requests over time at a scarce upstream](figures/scarcity.svg)\n\n"
        + table(["figure", "promise", "measured", ""], rows)
        + f"\nThe upstream refuses past {minutes} requests in any minute; Poisson arrivals at {3 * minutes} a minute "
        f"for {facts['seconds']:g} s, on a route with\n`deadline_ms = {facts['deadline_ms']}`.\n\n"
        "Command: `python tests/load/online.py scarcity`\n"
    )


def _department(figures: Facts) -> str:
    facts = figures.get("department")
    if facts is None:
        return ""
    rows = [
        [
            users,
            _spread(crowd["admitted_ttft_ms"]),
            f"{crowd['share_refused']:.0%}",
            _spread(crowd["refused_after_ms"]) if crowd["refused_after_ms"]["n"] else "–",
            milliseconds(crowd["longest_without_a_word_ms"]),
            str(crowd["errors"]),
        ]
        for users, crowd in facts["users"].items()
    ]
    longest = max(crowd["longest_without_a_word_ms"] or 0 for crowd in facts["users"].values())
    head = ["users at once", "admitted: first token p50 / p99", "refused", "refused after p50 / p99"]
    return (
        "### A department at once\n\n![First token and share refused](figures/department.svg)\n\n"
        + table([*head, "longest wait for any word", "errors"], rows)
        + f"\n{facts['slots']} slots, 1.3 s a generation, `deadline_ms = {facts['deadline_ms']}`. Nobody waits past "
        f"the deadline (and 0.1 s on the way) is {_judged(longest, facts['deadline_ms'] + 100)}.\n\n"
        "Command: `python tests/load/online.py department`\n"
    )


def section(figures: Facts) -> str:
    """What stands between the two marks: the conditions, then a table and a plot for each experiment there is."""
    conditions = [each["conditions"] for each in figures.values()]
    quick = sorted(name for name, each in figures.items() if each["effort"] != "full")
    head = (
        f"Measured on {conditions[0]['processors']} shared processors, Python {conditions[0]['python']}, "
        + (f"nginx {conditions[0]['nginx']} with one worker" if conditions[0]["nginx"] else "without nginx")
        + ".\nThe load client and the mock upstream run on the same processors. Keys, routing, budgets on tenant and "
        "key, record, switches\nand durable acknowledgement are on in every one.\n"
    )
    if quick:
        head += f"\nOnly a quick look, not for the record: {', '.join(quick)}.\n"
    refused = sorted({key for each in figures.values() for key in _refused_keys(each)})
    if refused:
        head += f"\nThis version has no {', '.join(f'`{key}`' for key in refused)}: measured without.\n"
    makers = (_first_token, _ceiling, _thousand, _memory, _cancel, _isolation, _scarcity, _department)
    return "\n".join([head, *(text for text in (maker(figures) for maker in makers) if text)])


def _refused_keys(facts: Facts) -> list[str]:
    variants = facts.get("variants", {}).values()
    return [key for each in (facts, *variants) for key in each.get("refused_keys", {})]


def answer(figures: Facts) -> str:
    """The figures behind the buyers' first question, one line each."""
    lines = []
    if "department" in figures:
        facts = figures["department"]
        longest = max(crowd["longest_without_a_word_ms"] or 0 for crowd in facts["users"].values())
        lines.append(f"- On {facts['slots']} slots, with `deadline_ms = {facts['deadline_ms']}`, at the same instant:")
        for users, crowd in facts["users"].items():
            lines.append(
                f"  - {users} users: {1 - crowd['share_refused']:.0%} admitted, their first token after "
                f"{_spread(crowd['admitted_ttft_ms'])} (p50 / p99); the others refused, with when to try again"
            )
        lines.append(f"  - nobody waited longer than {milliseconds(longest)} for a word")
    if "isolation" in figures:
        variants = figures["isolation"]["variants"]
        lanes, line = variants["lanes"], variants.get("one line")
        lines.append(
            f"- Beside a batch run with {lanes['batch']['calls_waiting']:,} calls waiting for the same upstream, the "
            f"p99 of the first token is {lanes['ratio']['p99']:.2f} × what it is\n  alone, while batch keeps "
            f"{lanes['batch']['slots_busy']:.0%} of its slots busy"
            + (f"; with batch in one line with people it is {line['ratio']['p99']:.0f} ×." if line else ".")
        )
    if "scarcity" in figures:
        facts = figures["scarcity"]
        lines.append(
            f"- At an upstream that takes {facts['requests_per_minute']} requests a minute and is offered three times "
            f"that, {facts['share_429']:.1%} of what reached it was refused there;\n  accepted requests had their "
            f"first token after {milliseconds(facts['ttft_ms_accepted']['p50'])} (unloaded: "
            f"{milliseconds(facts['ttft_ms_unloaded']['p50'])}), refusals came after "
            f"{milliseconds(facts['refused_after_ms']['p50'])}."
        )
    return "\n".join(lines) + "\n"
