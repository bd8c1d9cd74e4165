"""A procurement policy as data: read its rules, judge a contract's facts, say what follows.

The policy is a TOML file a risk officer can read (`flows/policy.toml` is the packaged one). The facts are verbatim
quotes, one per question, found by agents and located by the kernel. Values are read from the quotes by code, in
`rules/quantities`.

Three outcomes per rule: nothing to say, a *breach*, or *unreadable*. Unreadable means that the passage is there but
this code can't tell what it promises (no number, a number and its words that differ, two values of which only one
fits, a currency without a limit). It is never taken for fine and never for a breach: a person looks.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple, get_args

from twolane.errors import ConfigError
from twolane.rules.quantities import (
    CODES,
    Quantity,
    plain,
    read_days,
    read_law,
    read_money,
    read_months,
    read_percent,
)

Severity = Literal["low", "medium", "high", "critical"]
"""How much a breach matters, rising. See `decide` for what follows."""
Require = Literal["present", "absent"]
"""Whether the contract must have, or must not have, a passage on the rule's question."""
ValueKind = Literal["days", "months", "percent", "money", "law"]
"""What is read from a quote."""
Status = Literal["breach", "unreadable"]
"""A broken rule, or a passage that a person has to read."""
Decision = Literal["accept", "negotiate", "reject"]
"""What a buyer should do with the contract as it stands."""

KINDS = ("goods", "services", "software", "framework", "consulting")
"""The kinds of contract a rule may be limited to."""

QUESTIONS = (
    "parties",
    "agreement_date",
    "effective_date",
    "term",
    "renewal",
    "renewal_notice",
    "governing_law",
    "termination_for_convenience",
    "liability_cap",
    "uncapped_liability",
    "liquidated_damages",
    "insurance",
    "audit_rights",
    "assignment",
    "change_of_control",
    "exclusivity",
    "ip_ownership",
    "price_changes",
    "payment_terms",
    "warranty",
    "minimum_commitment",
    "confidentiality",
)
"""The questions asked of every contract; a rule speaks about exactly one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One sentence of the policy, in the form code can apply. See `apply` for how the checks combine."""

    id: str
    """The rule's name in reports, unique in its policy: `payment-days`."""
    title: str
    """The rule as a sentence."""
    question: str
    """The question whose quote is judged, one of `QUESTIONS`."""
    severity: Severity
    """How much a breach matters."""
    advice: str
    """What a buyer can do about a breach, in one sentence."""
    applies_to: tuple[str, ...] = ()
    """The kinds of contract it is meant for; empty means all."""
    require: Require | None = None
    """`present`: the passage must exist. `absent`: it must not."""
    value: ValueKind | None = None
    """What to read from the quote, or None when only its words matter."""
    min: tuple[Quantity, ...] = ()
    """The least allowed value, inclusive: one quantity, or one per currency. Empty means no lower limit."""
    max: tuple[Quantity, ...] = ()
    """The greatest allowed value, inclusive; shaped like `min`."""
    one_of: tuple[str, ...] = ()
    """The jurisdictions allowed, for `value = "law"`."""
    forbid: tuple[str, ...] = ()
    """Phrases that must not occur; case and white space don't matter."""
    demand: tuple[str, ...] = ()
    """Phrases of which at least one must occur."""
    allow: tuple[str, ...] = ()
    """Wording that is fine as it stands ("not renew automatically"): struck out before the quote is judged."""

    @property
    def expected(self) -> str:
        """What the rule wants, in words for a report."""
        parts = []
        if self.require:
            parts.append("no such clause" if self.require == "absent" else "a clause on this")
        if self.one_of:
            parts.append("one of: " + ", ".join(self.one_of))
        if self.min:
            parts.append("at least " + " or ".join(map(str, self.min)))
        if self.max:
            parts.append("at most " + " or ".join(map(str, self.max)))
        if self.forbid:
            parts.append("none of the words: " + ", ".join(self.forbid))
        if self.demand:
            parts.append("one of the words: " + ", ".join(self.demand))
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in force, in the order of the file."""

    name: str
    """The policy's title in reports."""
    version: str
    """The policy's own version, as its owners count; part of every finding's provenance."""
    rules: tuple[Rule, ...]
    """The rules, ids unique."""


@dataclass(frozen=True, slots=True)
class Breach:
    """What one rule has to say about one contract."""

    rule: str
    """The rule's id."""
    title: str
    """The rule as a sentence."""
    question: str
    """The question that was judged."""
    severity: Severity
    """The rule's severity, also where the status is `unreadable`."""
    quote: str | None
    """The passage judged, verbatim; None where the contract has none."""
    found: str | None
    """The value or phrase read from the quote; None where nothing could be read."""
    expected: str
    """What the rule wants."""
    advice: str
    """What a buyer can do."""
    status: Status
    """`breach`, or `unreadable` for a person to look at."""


# ---------------------------------------------------------------------------------------------------- reading a policy

_REQUIRED = ("id", "title", "question", "severity", "advice")
_PHRASES = ("one_of", "forbid", "demand", "allow")


def parse(table: Mapping[str, object]) -> Policy:
    """The policy in `table`, which is what `tomllib` returns for a policy file.

    Keys: `name`, `version` (strings, optional) and `rule` (an array of tables, at least one). Money limits are
    strings, `"EUR 1000000"`, or a list with one per currency; other limits are TOML numbers.

    Raises:
        ConfigError: an unknown key or value (the hint names the nearest known one), a missing key, a wrong type, two
            rules of the same id, or a rule that checks nothing.
    """
    _known(table, ("name", "version", "rule"), "policy")
    entries = table.get("rule")
    if not isinstance(entries, list) or not entries:
        raise ConfigError("a policy needs at least one [[rule]]", where="policy")
    rules = tuple(_rule(entry, number) for number, entry in enumerate(entries, 1))
    seen: set[str] = set()
    for rule in rules:
        if rule.id in seen:
            raise ConfigError(f"two rules have the id {rule.id!r}", where=f"rule {rule.id}", hint="rename one of them")
        seen.add(rule.id)
    name, version = table.get("name", "policy"), table.get("version", "1")
    return Policy(name=_text(name, "policy", "name"), version=_text(version, "policy", "version"), rules=rules)


def _rule(entry: object, number: int) -> Rule:
    if not isinstance(entry, Mapping):
        raise ConfigError("a rule is a table: [[rule]]", where=f"rule {number}")
    where = f"rule {entry.get('id', number)}"
    _known(entry, [field.name for field in fields(Rule)], where)
    missing = [key for key in _REQUIRED if key not in entry]
    if missing:
        raise ConfigError(f"the rule lacks {', '.join(missing)}", where=where)
    texts = {key: _text(entry[key], where, key) for key in _REQUIRED}
    lists = {key: _texts(entry.get(key, []), where, key) for key in (*_PHRASES, "applies_to")}
    for kind in lists["applies_to"]:
        _one_of(kind, KINDS, where, "applies_to")
    require: Require | None = _choice(entry, "require", get_args(Require), where)  # type: ignore[assignment]  # checked there
    value: ValueKind | None = _choice(entry, "value", get_args(ValueKind), where)  # type: ignore[assignment]  # checked there
    severity: Severity = _one_of(texts["severity"], get_args(Severity), where, "severity")  # type: ignore[assignment]
    rule = Rule(
        id=texts["id"],
        title=texts["title"],
        question=_one_of(texts["question"], QUESTIONS, where, "question"),
        severity=severity,
        advice=texts["advice"],
        applies_to=lists["applies_to"],
        require=require,
        value=value,
        min=_limits(entry.get("min"), value, where, "min"),
        max=_limits(entry.get("max"), value, where, "max"),
        one_of=lists["one_of"],
        forbid=lists["forbid"],
        demand=lists["demand"],
        allow=lists["allow"],
    )
    _checks_something(rule, where)
    return rule


def _checks_something(rule: Rule, where: str) -> None:
    if rule.value == "law" and not rule.one_of:
        raise ConfigError("a rule on law needs one_of, the jurisdictions allowed", where=where)
    if rule.one_of and rule.value != "law":
        raise ConfigError('one_of goes with value = "law"', where=where)
    if rule.value and rule.value != "law" and not (rule.min or rule.max):
        raise ConfigError(f"a rule on {rule.value} needs min or max", where=where)
    if rule.require == "absent" and (rule.value or rule.forbid or rule.demand):
        raise ConfigError("a passage that must be absent can't be checked for anything else", where=where)
    if not (rule.require or rule.value or rule.forbid or rule.demand):
        raise ConfigError("the rule checks nothing", where=where, hint="give it require, value, forbid or demand")
    ceilings = {limit.unit: limit.amount for limit in rule.max}
    for floor in rule.min:
        if floor.amount > ceilings.get(floor.unit, floor.amount):
            raise ConfigError(f"min is above max for {floor.unit}", where=where)


def _limits(raw: object, value: ValueKind | None, where: str, key: str) -> tuple[Quantity, ...]:
    if raw is None:
        return ()
    if value is None or value == "law":
        raise ConfigError(f'{key} needs value = "days", "months", "percent" or "money"', where=where)
    if value != "money":
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise ConfigError(f"{key} is a number of {value}, not {raw!r}", where=where)
        return (Quantity(Decimal(str(raw)), value),)
    amounts = [_money_limit(text, where, key) for text in ([raw] if isinstance(raw, str) else _texts(raw, where, key))]
    if len({amount.unit for amount in amounts}) < len(amounts):
        raise ConfigError(f"{key} names a currency twice", where=where)
    return tuple(amounts)


def _money_limit(text: str, where: str, key: str) -> Quantity:
    currency, _, number = text.strip().partition(" ")
    try:
        amount = Decimal(number.replace(",", ""))
    except InvalidOperation:
        raise ConfigError(f"{key} can't be read: {text!r}", where=where, hint='write "EUR 1000000"') from None
    return Quantity(amount, _one_of(currency, CODES, where, key))


def _known(table: Mapping[str, object], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=where, hint=_nearest(key, known))


def _one_of(word: str, known: Sequence[str], where: str, key: str) -> str:
    if word not in known:
        raise ConfigError(f"{key} can't be {word!r}", where=where, hint=_nearest(word, known))
    return word


def _choice(entry: Mapping[str, object], key: str, known: Sequence[str], where: str) -> str | None:
    return _one_of(_text(entry[key], where, key), known, where, key) if key in entry else None


def _nearest(word: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else "known: " + ", ".join(known)


def _text(raw: object, where: str, key: str) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ConfigError(f"{key} is a text, not {raw!r}", where=where)
    return raw


def _texts(raw: object, where: str, key: str) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ConfigError(f"{key} is a list of texts, not {raw!r}", where=where)
    return tuple(_text(item, where, key) for item in raw)


# ------------------------------------------------------------------------------------------------------- judging


class _Outcome(NamedTuple):
    """What a check found; `status` None means that it is content."""

    status: Status | None
    found: str | None = None


_CONTENT = _Outcome(None)


def apply(
    policy: Policy, *, kind: str | None, facts: Mapping[str, str | None], doubtful: Collection[str] = ()
) -> tuple[Breach, ...]:
    """What `policy` has to say about a contract, at most one entry per rule, in the order of the policy.

    `facts` maps question ids to verbatim quotes; a missing key, None or a blank quote all mean *not in the contract*.
    A rule limited to some kinds is skipped for others. Where `kind` is None or not one of `KINDS`, nobody can say
    which of those rules apply: they are all tried, and what they find is reported as unreadable. So is every rule about
    a question in `doubtful`: its quote may not answer the question at all, so nothing is read from it.

    Within a rule: without a passage only `require` counts. With one, `allow` is struck out first, then `forbid`,
    `demand` and the value are checked. All values in a quote are weighed: all within the limits is fine, all outside
    is a breach, some of each is unreadable. A breach by one check outweighs an unreadable value in another.
    """
    breaches = []
    is_kind_known = kind in KINDS
    for rule in policy.rules:
        if rule.applies_to and is_kind_known and kind not in rule.applies_to:
            continue
        quote = facts.get(rule.question)
        quote = quote if quote and quote.strip() else None
        status, found = _Outcome("unreadable") if rule.question in doubtful else _judge(rule, quote)
        if status is None:
            continue
        if rule.applies_to and not is_kind_known:
            status = "unreadable"
        breaches.append(
            Breach(
                rule=rule.id,
                title=rule.title,
                question=rule.question,
                severity=rule.severity,
                quote=quote,
                found=found,
                expected=rule.expected,
                advice=rule.advice,
                status=status,
            )
        )
    return tuple(breaches)


def decide(breaches: Iterable[Breach]) -> Decision:
    """What to do with a contract that has these breaches.

    *reject*: one critical breach, or three high ones. *negotiate*: any other breach of medium or high severity, or
    any passage that a person has yet to read, whatever its severity. *accept*: nothing, or only low breaches.
    """
    entries = tuple(breaches)
    severities = [breach.severity for breach in entries if breach.status == "breach"]
    if "critical" in severities or severities.count("high") >= 3:
        return "reject"
    if {"medium", "high"} & set(severities) or any(breach.status == "unreadable" for breach in entries):
        return "negotiate"
    return "accept"


def _judge(rule: Rule, quote: str | None) -> _Outcome:
    if quote is None:
        return _Outcome("breach") if rule.require == "present" else _CONTENT
    text, was_allowed = _strike(quote, rule.allow)
    if rule.require == "absent":
        return _CONTENT if was_allowed else _Outcome("breach", plain(quote))
    words = _judge_words(rule, text, was_allowed=was_allowed)
    if words.status == "breach" or rule.value is None:
        return words
    return _judge_law(rule, text) if rule.value == "law" else _judge_value(rule, text, was_allowed=was_allowed)


def _strike(quote: str, allow: Sequence[str]) -> tuple[str, bool]:
    """The quote on one line without the allowed phrases, and whether there were any."""
    text = plain(quote)
    struck = text
    for phrase in allow:
        struck = re.sub(_phrase(phrase), " … ", struck, flags=re.IGNORECASE)
    return struck, struck != text


def _phrase(phrase: str) -> str:
    """A pattern for `phrase` as whole words."""
    return rf"(?<!\w){re.escape(plain(phrase))}(?!\w)"


def _occurs(phrase: str, text: str) -> bool:
    return re.search(_phrase(phrase), text, re.IGNORECASE) is not None


def _judge_words(rule: Rule, text: str, *, was_allowed: bool) -> _Outcome:
    for phrase in rule.forbid:
        if _occurs(phrase, text):
            return _Outcome("breach", phrase)
    if rule.demand and not was_allowed and not any(_occurs(phrase, text) for phrase in rule.demand):
        return _Outcome("breach")
    return _CONTENT


def _judge_law(rule: Rule, text: str) -> _Outcome:
    places = read_law(text, rule.one_of)
    allowed = {name.lower() for name in rule.one_of}
    return _weigh([place.lower() in allowed for place in places], ", ".join(places))


def _judge_value(rule: Rule, text: str, *, was_allowed: bool) -> _Outcome:
    readers = {"days": read_days, "months": read_months, "percent": read_percent, "money": read_money}
    values = readers[rule.value or ""](text)
    if not values and was_allowed:
        return _CONTENT
    return _weigh([_fits(rule, value) for value in values], ", ".join(dict.fromkeys(map(str, values))))


def _fits(rule: Rule, value: Quantity) -> bool | None:
    """Whether the value is within the rule's limits; None when the rule has no limit in its currency."""
    floors = {limit.unit: limit.amount for limit in rule.min}
    ceilings = {limit.unit: limit.amount for limit in rule.max}
    if value.unit not in floors.keys() | ceilings.keys():
        return None
    return floors.get(value.unit, value.amount) <= value.amount <= ceilings.get(value.unit, value.amount)


def _weigh(fits: Sequence[bool | None], found: str) -> _Outcome:
    if fits and all(fits):
        return _CONTENT
    is_breach = bool(fits) and all(fit is False for fit in fits)
    return _Outcome("breach" if is_breach else "unreadable", found or None)
