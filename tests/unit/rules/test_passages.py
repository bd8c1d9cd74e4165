from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twolane.rules.passages import MAX_CHARS, split

CONTRACT = """\
SUPPLY AGREEMENT

1. DEFINITIONS

1.1 Goods. The word "Goods" means the items listed in Annex A, as amended by the parties in writing from time to time.

2. PRICE AND PAYMENT

2.1 Price. The prices of Annex B are fixed for twelve months, and they include packing, freight and insurance up to

12

the place of delivery named in the order, unless the parties agree otherwise in writing before the order is placed.

(a) An invoice is due within thirty (30) days of receipt; Mr. A. Example of Example Co. Ltd. receives it on our behalf.
(b) Late payment bears interest at 4.5 percent a year above the base rate, from the day after the invoice fell due.

IN NO EVENT SHALL EITHER PARTY BE LIABLE FOR INDIRECT OR CONSEQUENTIAL DAMAGES, WHATEVER THEIR CAUSE MAY HAVE BEEN.
"""


def passages(text: str) -> list[str]:
    return [text[unit.body : unit.end] for unit in split(text)]


def test_clauses_stand_alone_and_know_their_headings() -> None:
    units = split(CONTRACT)
    due = next(unit for unit in units if "An invoice is due" in CONTRACT[unit.start : unit.end])
    assert CONTRACT[due.start :].startswith("(a) ")
    assert CONTRACT[due.body :].startswith("An invoice")
    assert "PRICE AND PAYMENT" in due.heading
    assert not due.is_heading


def test_a_run_in_heading_is_context_and_not_quoted() -> None:
    goods = next(unit for unit in split(CONTRACT) if "items listed" in CONTRACT[unit.start : unit.end])
    assert CONTRACT[goods.body :].startswith('The word "Goods"')
    assert "DEFINITIONS Goods" in goods.heading.replace("1. ", "")


def test_a_page_number_does_not_tear_a_sentence() -> None:
    price = next(passage for passage in passages(CONTRACT) if passage.startswith("The prices"))
    assert price.endswith("before the order is placed.")


def test_abbreviations_and_decimals_do_not_end_a_sentence() -> None:
    assert any("Mr. A. Example of Example Co. Ltd. receives it" in passage for passage in passages(CONTRACT))
    assert any("interest at 4.5 percent" in passage for passage in passages(CONTRACT))


def test_a_paragraph_in_capitals_is_no_heading() -> None:
    damages = next(unit for unit in split(CONTRACT) if "CONSEQUENTIAL" in CONTRACT[unit.start : unit.end])
    assert not damages.is_heading


def test_running_lines_and_form_feeds_are_left_out() -> None:
    page = "Delivery {} goes to the place that the order names.\n\nConfidential draft of May\n\n{}\n\f"
    text = "".join(page.format(number, number) for number in range(1, 6))
    assert passages(text) == [f"Delivery {number} goes to the place that the order names." for number in range(1, 6)]


def test_labelled_lines_stand_alone() -> None:
    text = "governing_law: English law applies.\nterm: three years\ninsurance: none\n"
    assert [text[unit.start : unit.end] for unit in split(text)] == text.splitlines()


def test_a_sentence_without_end_is_cut_at_a_clause() -> None:
    text = "The supplier warrants that " + "the goods are new, and that nothing is hidden, " * 60
    units = split(text)
    assert all(unit.end - unit.start <= MAX_CHARS for unit in units)
    assert "".join(text[unit.start : unit.end] for unit in units).count("hidden") == 60


@given(st.text(alphabet=st.sampled_from("aB .;:\n\f\t(1)'\"—ż\u00a0,"), max_size=400) | st.text(max_size=200))
def test_passages_are_ordered_and_inside_the_text_and_lose_no_letter(text: str) -> None:
    end = 0
    for unit in split(text):
        assert end <= unit.start <= unit.body < unit.end <= len(text)
        assert text[unit.start : unit.end].strip() == text[unit.start : unit.end]
        end = unit.end


_parts = st.sampled_from(["Goods are new.", "The price is fixed", "\n\n", "; ", " ", "(a) ", "\n", "4.2 "])


@given(st.lists(_parts, max_size=40))
def test_words_outside_of_page_furniture_are_kept(parts: list[str]) -> None:
    text = "".join(parts)
    kept = "".join(text[unit.start : unit.end] for unit in split(text))
    lines = [" ".join(line.split()) for line in text.split("\n")]
    if all(lines.count(line) < 3 for line in lines if line):
        assert kept.count("Goods") == text.count("Goods")
        assert kept.count("price") == text.count("price")
