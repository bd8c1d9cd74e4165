"""A procurement policy as data: read its rules, judge a contract's facts, say what follows.

The policy is a TOML file a risk officer can read (`flows/policy.toml` is the packaged one). The facts are verbatim
quotes, one per question, found by agents and located by the kernel. Values are read from the quotes here, by code:
a model never decides whether 75 days is more than 60.

Three outcomes per rule: nothing to say, a *breach*, or *unreadable*. Unreadable means that the passage is there but
this code can't tell what it promises (no number, a number and its words that differ, two values of which only one
fits, a currency without a limit). It is never taken for fine and never for a breach: a person looks.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Literal, NamedTuple, get_args

from twolane.errors import ConfigError

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


class Quantity(NamedTuple):
    """An exact amount with its unit: a limit of a rule, or a value read from a quote."""

    amount: Decimal
    """The number, exact; never a float."""
    unit: str
    """`days`, `months`, `percent`, or an ISO 4217 currency code."""

    def __str__(self) -> str:
        """The quantity as a person writes it: `60 days`, `EUR 1,000,000`."""
        number = f"{self.amount:,f}"
        number = number.rstrip("0").rstrip(".") if "." in number else number
        return f"{self.unit} {number}" if self.unit.isupper() else f"{number} {self.unit}"


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
    return Quantity(amount, _one_of(currency, _CODES, where, key))


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


# ------------------------------------------------------------------------------------------------- reading values

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_UNITS = {word: number for number, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALES = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_SHORT = {"k": 1_000, "m": 1_000_000, "mn": 1_000_000, "bn": 1_000_000_000} | _SCALES

# `point` and `half` belong to the grammar so that "two point five" is refused instead of being read as five.
_WORD = rf"(?:{'|'.join(sorted([*_UNITS, *_SCALES, 'hundred', 'point', 'half'], key=len, reverse=True))})"
# Atomic, so that "forty-five" is never taken for the range from forty to five; bounded, so that a hostile
# text costs no more than its length.
_WORDS = rf"(?>\b{_WORD}\b(?:(?:\s+and\s+(?:an?\s+)?|\s+an?\s+|[\s-]+){_WORD}\b){{0,15}})"
_DIGITS = r"(?<![\d.,])(?:\d{1,3}(?:[,' ]\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)*)(?![\d])"
_NUMBER = rf"(?:{_WORDS}|{_DIGITS})"
_RANGE = rf"(?:(?P<low>{_NUMBER})(?:\s*\([^)]{{1,40}}\))?\s*(?:to|or|and|-|\u2013|\u2014)\s*)?"

_DURATION = re.compile(
    rf"{_RANGE}(?P<number>{_NUMBER})(?:\s*\((?P<again>[^)]{{1,60}})\))?"
    r"[\s-]*(?P<adjective>calendar|consecutive|full|business|working|banking)?"
    r"[\s-]*(?P<unit>day|week|month|year)s?\b",
    re.IGNORECASE,
)
_NET = re.compile(r"\bnet\s+(?P<number>\d+)\b", re.IGNORECASE)
_MONTH_END = re.compile(r"\bend of (?:the |that |each |a )?(?:\w+ )?month\b", re.IGNORECASE)
_PERCENT = re.compile(
    rf"{_RANGE}(?P<number>{_NUMBER})(?:\s*\((?P<again>[^)]{{1,60}})\))?\s*(?:%|per\s?cent(?:um)?\b)", re.IGNORECASE
)

_CODES = ("USD", "EUR", "GBP", "CHF", "SEK", "NOK", "DKK", "PLN", "CZK", "CAD", "AUD", "NZD", "JPY", "SGD", "INR")
# A bare dollar sign is read as US dollars; other dollars have a letter, a code or a country before them.
_SIGNS = {"US$": "USD", "C$": "CAD", "CA$": "CAD", "A$": "AUD", "S$": "SGD", "NZ$": "NZD", "$": "USD"}
_SIGNS |= {"€": "EUR", "£": "GBP", "¥": "JPY"}
_NAMES = {
    "canadian dollars": "CAD",
    "australian dollars": "AUD",
    "singapore dollars": "SGD",
    "us dollars": "USD",
    "u.s. dollars": "USD",
    "united states dollars": "USD",
    "dollars": "USD",
    "euros": "EUR",
    "euro": "EUR",
    "pounds sterling": "GBP",
    "pounds": "GBP",
    "swiss francs": "CHF",
    "swedish kronor": "SEK",
}
_BEFORE = "|".join([*_CODES, *(re.escape(sign) for sign in sorted(_SIGNS, key=len, reverse=True))])
_AFTER = "|".join([*(re.escape(name) for name in sorted(_NAMES, key=len, reverse=True)), *_CODES, "€", "£"])
_SCALED = rf"{_NUMBER}(?:\s*(?:thousand|million|billion|bn|mn|m|k)\b)?"
_MONEY = re.compile(
    rf"(?<![A-Za-z])(?P<before>{_BEFORE})\s*(?P<number>{_SCALED})"
    rf"|(?P<words>{_SCALED})\s*(?P<after>{_AFTER})(?![A-Za-z])",
    re.IGNORECASE,
)

_ALSO_CALLED = {
    "England": "England and Wales",
    "English": "England and Wales",
    "Scots": "Scotland",
    "Scottish": "Scotland",
    "Irish": "Ireland",
    "German": "Germany",
    "French": "France",
    "Dutch": "Netherlands",
    "Belgian": "Belgium",
    "Austrian": "Austria",
    "Swiss": "Switzerland",
    "Spanish": "Spain",
    "Portuguese": "Portugal",
    "Italian": "Italy",
    "Danish": "Denmark",
    "Swedish": "Sweden",
    "Norwegian": "Norway",
    "Finnish": "Finland",
    "Polish": "Poland",
    "Panamanian": "Panama",
    "Californian": "California",
    "Texan": "Texas",
    "Cayman": "Cayman Islands",
    "Indian": "India",
    "Japanese": "Japan",
}
_PLACE = r"(?<![\w'-])[A-Z][\w'-]{1,30}(?:(?:\s(?:and|of|the)){0,2}\s[A-Z][\w'-]{1,30}){0,6}"
_LAWS_OF = re.compile(rf"\b[Ll]aws?(?:\s+(?:in\s+force\s+in|applicable\s+in|of))\s+(?:[Tt]he\s+)?(?P<place>{_PLACE})")
_LAW_AFTER = re.compile(rf"(?P<place>{_PLACE})\s+[Ll]aw\b")
_STYLE_OF_STATE = re.compile(
    r"^(?:(?:Federal|French|Italian|Portuguese|Swiss)\s+)?"
    r"(?:State|Republic|Kingdom|Commonwealth|Province|Confederation)\s+of\s+(?:the\s+)?"
)


def _plain(text: str) -> str:
    """`text` with every run of white space as one blank, and curly quotes straightened."""
    return " ".join(text.replace("\u2019", "'").replace("\u2018", "'").split())


def _number(text: str) -> Decimal | None:
    """The number written in digits or English words, or None when it isn't clearly one.

    `1,000,000.50`, `1 000 000` and `1'000'000` are read; `750.000` and `1,5` are not, because half of Europe means
    something else by them than the other half.
    """
    text = text.strip().lower()
    digits = re.fullmatch(r"(\d{1,3}(?:[,' ]\d{3})+|\d+)(\.\d+)?", text)
    if digits:
        if re.fullmatch(r"\d{1,3}\.\d{3}", text):
            return None
        return Decimal(re.sub(r"[,' ]", "", digits[1]) + (digits[2] or ""))
    return _number_in_words(re.split(r"[\s-]+", text))


def _number_in_words(words: Sequence[str]) -> Decimal | None:
    """The value of number words in order, `one hundred and twenty` → 120; None for what isn't one number."""
    total, group, previous = 0, 0, ""
    for word in words:
        if word in _UNITS:
            is_unit_after_ten = previous in _TENS and 1 <= _UNITS[word] <= 9
            if previous in _UNITS and not is_unit_after_ten:
                return None
            group += _UNITS[word]
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif word in _SCALES and group:
            total, group = total + group * _SCALES[word], 0
        elif word == "and" and (previous == "hundred" or previous in _SCALES):
            pass
        else:
            return None
        previous = word
    return Decimal(total + group) if previous and previous != "and" else None


def _scaled(text: str) -> Decimal | None:
    """Like `_number`, also for digits with a scale: `2.5 million`, `5m`."""
    match = re.fullmatch(rf"(?P<digits>[\d.,' ]*\d)\s*(?P<scale>{'|'.join(_SHORT)})", text.strip(), re.IGNORECASE)
    if match is None:
        return _number(text)
    number = _number(match["digits"])
    return None if number is None else number * _SHORT[match["scale"].lower()]


def _twice(match: re.Match[str]) -> list[Decimal] | None:
    """The number(s) of a match, None when one can't be read or "thirty (60)" contradicts itself."""
    number = _number(match["number"])
    again = re.match(rf"\s*({_NUMBER})", match["again"] or "", re.IGNORECASE)
    if number is None or (again and _number(again[1]) != number):
        return None
    if match["low"] is None:
        return [number]
    low = _number(match["low"])
    return None if low is None else [low, number]


def read_days(quote: str) -> tuple[Quantity, ...]:
    """Every duration in `quote` in calendar days, in order; empty when one of them can't be read with certainty.

    A week is 7 days, a month 30, a year 365; five business days are seven days, rounded up. `net 30` counts. "End of
    the month" is up to 30 days more than it says, so such a quote isn't read.
    """
    if _MONTH_END.search(quote):
        return ()
    days = {"day": Decimal(1), "week": Decimal(7), "month": Decimal(30), "year": Decimal(365)}
    values = _durations(quote, days, "days")
    if values is None:
        return ()
    return tuple(values) or tuple(Quantity(Decimal(match["number"]), "days") for match in _NET.finditer(_plain(quote)))


def read_months(quote: str) -> tuple[Quantity, ...]:
    """Every duration in `quote` in months, in order; empty when one of them can't be read with certainty.

    A year is 12 months, 30 days are one, a week is 7 of those days; rounded to a tenth.
    """
    months = {"day": Decimal(1) / 30, "week": Decimal(7) / 30, "month": Decimal(1), "year": Decimal(12)}
    values = _durations(quote, months, "months")
    return () if values is None else tuple(Quantity(round(amount, 1), unit) for amount, unit in values)


def _durations(quote: str, per_unit: Mapping[str, Decimal], name: str) -> list[Quantity] | None:
    values = []
    for match in _DURATION.finditer(_plain(quote)):
        numbers = _twice(match)
        if numbers is None:
            return None
        for number in numbers:
            if (match["adjective"] or "").lower() in ("business", "working", "banking"):
                number = (number * 7 / 5).to_integral_value(ROUND_CEILING)
            values.append(Quantity(number * per_unit[match["unit"].lower()], name))
    return values


def read_percent(quote: str) -> tuple[Quantity, ...]:
    """Every percentage in `quote`, in order; empty when one of them can't be read with certainty."""
    values = []
    for match in _PERCENT.finditer(_plain(quote)):
        numbers = _twice(match)
        if numbers is None:
            return ()
        values += [Quantity(number, "percent") for number in numbers]
    return tuple(values)


def read_money(quote: str) -> tuple[Quantity, ...]:
    """Every amount of money in `quote` with its currency, in order; empty when one can't be read with certainty."""
    values = []
    for match in _MONEY.finditer(_plain(quote)):
        amount = _scaled(match["number"] or match["words"])
        if amount is None:
            return ()
        mark = match["before"] or match["after"]
        values.append(Quantity(amount, _NAMES.get(mark.lower()) or _SIGNS.get(mark.upper()) or mark.upper()))
    return tuple(values)


def read_law(quote: str, known: Iterable[str] = ()) -> tuple[str, ...]:
    """Every jurisdiction whose law `quote` names, each once; empty when none can be read.

    "the laws of the State of New York", "law applicable in Germany" and "English law" are understood. After "laws of"
    any name counts, as it stands; before "law" only names and adjectives this file knows and those in `known`,
    because "Governing law" and "Common law" are no places.
    """
    text = _plain(quote)
    names = {name.lower(): name for name in (*_ALSO_CALLED.values(), *known)}
    names |= {other.lower(): name for other, name in _ALSO_CALLED.items() if other.lower() not in names}
    found: dict[str, None] = {}
    for match in _LAWS_OF.finditer(text):
        place = _STYLE_OF_STATE.sub("", match["place"]).removesuffix(" State")
        parts = [place] if place.lower() in names else re.split(r"\s+and\s+", place)
        found |= dict.fromkeys(names.get(part.lower(), part) for part in parts)
    for match in _LAW_AFTER.finditer(text):
        words = match["place"].removesuffix(" State").lower().split()
        endings = (" ".join(words[start:]) for start in range(len(words)))
        found |= dict.fromkeys([names[ending] for ending in endings if ending in names][:1])
    return tuple(found)


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
        return _CONTENT if was_allowed else _Outcome("breach", _plain(quote))
    words = _judge_words(rule, text, was_allowed=was_allowed)
    if words.status == "breach" or rule.value is None:
        return words
    return _judge_law(rule, text) if rule.value == "law" else _judge_value(rule, text, was_allowed=was_allowed)


def _strike(quote: str, allow: Sequence[str]) -> tuple[str, bool]:
    """The quote on one line without the allowed phrases, and whether there were any."""
    text = _plain(quote)
    struck = text
    for phrase in allow:
        struck = re.sub(_phrase(phrase), " … ", struck, flags=re.IGNORECASE)
    return struck, struck != text


def _phrase(phrase: str) -> str:
    """A pattern for `phrase` as whole words."""
    return rf"(?<!\w){re.escape(_plain(phrase))}(?!\w)"


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
