"""A quoted passage is found where it stands, word for word; what is not there is not found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twolane.domain.document import Quote, locate

TEXT = "The supplier\n  shall deliver “on time” — within thirty\tdays.\nLiability is the Supplier’s alone."


@pytest.mark.parametrize(
    "passage, found",
    [
        ("shall deliver", "shall deliver"),
        ("The supplier shall deliver", "The supplier\n  shall deliver"),
        ('"on time" - within thirty days.', "“on time” — within thirty\tdays."),
        ("the Supplier's alone", "the Supplier’s alone"),
        ("  shall deliver ", "  shall deliver "),
        ("\nshall  deliver\n", "shall deliver"),
    ],
)
def test_a_passage_is_found_whatever_its_breaks_quotation_marks_and_dashes(passage: str, found: str) -> None:
    place = locate(passage, TEXT)
    assert place is not None
    assert TEXT[slice(*place)] == found


@pytest.mark.parametrize(
    "passage", ["", " \n", "shall not deliver", "the supplier shall", "on-time", "days.Liability was"]
)
def test_what_is_not_there_is_not_found(passage: str) -> None:
    assert locate(passage, TEXT) is None


def test_the_first_occurrence_counts() -> None:
    assert locate("a b", "x a b a b") == (2, 5)


marks = {"“": '"', "”": '"', "’": "'", "—": "-", "–": "-"}
letters = st.sampled_from("abcdeéß0123.,;“”’—–-'\"\n\t  ")


def squeezed(text: str) -> str:
    return "".join(marks.get(each, each) for each in text if not each.isspace())


@given(
    st.text(letters, max_size=30),
    st.text(letters, max_size=30),
    st.sampled_from("ab0,“"),
    st.text(letters, max_size=30),
)
def test_any_part_of_a_text_is_found_however_it_was_reflowed(before: str, more: str, mark: str, after: str) -> None:
    part = mark + more
    text = before + part + after
    reflowed = " ".join("".join(marks.get(each, each) for each in part).split())
    for passage in (part, reflowed, squeezed(part)):
        place = locate(passage, text)
        assert place is not None
        assert squeezed(text[slice(*place)]) == squeezed(passage)


@given(st.text(letters, max_size=40), st.text(letters, max_size=6))
def test_what_is_found_says_the_same_as_the_passage(text: str, passage: str) -> None:
    place = locate(passage, text)
    if place is None:
        assert not squeezed(passage) or squeezed(passage) not in squeezed(text)
    else:
        assert 0 <= place[0] < place[1] <= len(text)
        assert squeezed(text[slice(*place)]) == squeezed(passage)


def test_a_quote_is_read_from_its_text_alone_or_from_what_was_stored() -> None:
    assert Quote.model_validate("word for word") == Quote(text="word for word")
    placed = Quote(text="a", document="d", start=3, end=4)
    assert Quote.model_validate(placed.model_dump()) == placed
    with pytest.raises(ValidationError):
        Quote.model_validate({"text": "a", "page": 3})


@pytest.mark.parametrize(
    ("passage", "text", "found"),
    [
        ("caf\u00e9 au lait", "Le cafe\u0301 au lait.", "cafe\u0301 au lait"),
        ("cafe\u0301 au lait", "Le caf\u00e9 au lait.", "caf\u00e9 au lait"),
        ("office of the firm", "The oﬃce of the ﬁrm.", "oﬃce of the ﬁrm"),
        ("The oﬃce", "The office", "The office"),
        ("cafe", "Un cafe\u0301, deux cafe.", "cafe"),
        ("cafe", "Le cafe\u0301", None),
        ("cafe", "Le caf\u00e9", None),
        ("caf\u00e9", "Le cafe", None),
        ("102", "It is 10².", None),
        ("\u200b", "a\u200bb", None),
        ("\u00ad \u2060", "a b", None),
    ],
)
def test_an_accent_may_be_written_otherwise_but_not_left_out(passage: str, text: str, found: str | None) -> None:
    place = locate(passage, text)
    assert (text[slice(*place)] if place else None) == found
    if found == "cafe":
        assert place == (15, 19)
