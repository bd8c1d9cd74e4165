from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.ranking import ask, join, read, score, stem

TEXT = """\
1. Delivery. The supplier delivers the goods within ten days of the order to the warehouse named in it.

2. Termination. Either party may end this agreement with three months of notice, and need not give a reason for it.

3. Law. This agreement is governed by the laws of Ireland, and its courts decide every dispute that arises from it.

4. Bees. The keeper of the hives looks after the bees in winter, and is paid for sugar and for the medicine they need.
"""


def best(question: str, name: str = "", text: str = TEXT) -> str:
    index = read(text)
    numbers = score(ask(question, name), index).best()
    return index.passage(numbers[0]) if numbers else ""


def test_forms_of_a_word_share_a_stem() -> None:
    assert stem("terminate") == stem("terminating") == stem("termination") == stem("terminated")
    assert stem("assigns") == stem("assignment") == stem("assigned")
    assert stem("parties") == stem("party")
    assert stem("2024") == "2024"


def test_words_find_the_passage() -> None:
    assert best("When must the goods be delivered?").startswith("The supplier delivers")
    assert best("Who looks after the hive?").startswith("The keeper")
    assert best("What is the price of tea in the moon's shadow?", text="Nothing here fits.") == ""


def test_a_quoted_cue_outweighs_plain_words() -> None:
    assert best("Supplier, goods, order, warehouse: 'need not give a reason'").startswith("Either party")
    assert best("'ends … notice', 'may end … notice'").startswith("Either party")


def test_cues_after_not_count_against_a_passage() -> None:
    question = ask("Look for 'agreement', 'dispute's end'; but not 'governed by', 'courts'")
    assert [(cue.text, cue.is_negative) for cue in question.cues] == [
        ("agreement", False),
        ("dispute's end", False),
        ("governed by", True),
        ("courts", True),
    ]
    assert best("Look for 'agreement'; but not 'governed by', 'courts'").startswith("Either party")


def test_the_heading_helps_where_the_words_do_not_decide() -> None:
    text = "Warranty\n\nThe supplier answers for two years.\n\nInsurance\n\nThe supplier answers for three years.\n"
    assert best("supplier answers", "insurance", text) == "The supplier answers for three years."


def test_a_field_is_asked_within_its_object() -> None:
    asked = join(ask("", "supplier"), ask("", "postal_address"))
    assert set(asked.words) == {stem("supplier"), stem("postal"), stem("address")}


def test_camel_case_and_underscores_are_words() -> None:
    assert ask("", "governingLaw").words == ask("", "governing_law").words


@given(st.text(max_size=300), st.text(max_size=60), st.text(max_size=20))
def test_no_text_and_no_question_breaks_it(text: str, question: str, name: str) -> None:
    index = read(text)
    scores = score(ask(question, name), index)
    assert len(scores.total) == len(index.units)
    assert all(0 <= number < len(index.units) for number in scores.best(3))
