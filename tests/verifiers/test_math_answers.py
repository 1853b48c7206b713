"""Where an answer is found, and how it is spelled: no process, no algebra."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.verifiers.answers import ANSWER_CHARS, READ_CHARS, Found, find_answer, gold_answer
from fusion.verifiers.comparison import align, settle, variants
from fusion.verifiers.notation import Spelling, spell
from fusion.verifiers.units import plain_number

DEFAULT = ("boxed", "final")
# Pieces that the extraction looks for, put together at random, find more than random characters do.
# fmt: off
PIECES = st.sampled_from([
    r"\boxed{", r"\fbox{", "{", "}", "\\", "\\{", "$", "$$", r"\(", r"\)", r"\[", "####", " ", "\n", "12", "1,234", ".", "%",
    "the answer is ", "Answer: ", "**", "答案是", "and", ", ", "=", "x", r"\frac{1}{2}", "not ", "-", "\u200b", "\ud800",
])
# fmt: on
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=()), max_size=5), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{2} and \boxed{3", "2"),
        (r"\boxed{ \boxed{2}", "2"),
        (r"} \boxed{2} } {", "2"),
        ("#### 5\nThe answer is 6", "6"),
        ("The answer is 6\n#### 5", "5"),
        ("The answer is 3.5 apples. Bye.", "3.5 apples"),
        ("The answer is $12 for one and $7 for two, so $26", "$12 for one and $7 for two"),
        ("The answer is $\\$12$", "\\$12"),
        ("the answer is $x$ where $x = 5$", "x"),
        ("Answer: the value of $x$ is $5$.", "5"),
        ("Answer $9$", "9"),
        ("So the answer is $5$%", "5%"),
    ],
)
def test_last_answer_of_a_text(text: str, answer: str) -> None:
    assert find_answer(text, DEFAULT) == Found(answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("it is 12", "no_answer"),
        (r"\boxed{}", "no_answer"),
        (r"the answer is 12: \boxed{12", "unclosed_box"),
        (r"\boxed{" + "1" * (ANSWER_CHARS + 1) + "}", "answer_too_long"),
        ("\\boxed{1\u200b2}", "odd_characters"),
        ("\\boxed{１２}", "odd_characters"),
        ("\\boxed{\ud800}", "odd_characters"),
    ],
)
def test_reasons_for_no_answer(text: str, reason: str) -> None:
    assert find_answer(text, DEFAULT) == Found("", reason)


def test_conventions_count_in_their_order() -> None:
    text = r"\boxed{1} The answer is 2. Not 3"
    assert find_answer(text, ("boxed", "final")).text == "1"
    assert find_answer(text, ("final", "boxed")).text == "2"
    assert find_answer(text, ("last_number", "boxed")).text == "3"
    assert find_answer("it is -1,234.5% now", ("boxed", "final", "last_number")).text == "-1,234.5%"


def test_only_the_end_of_a_long_text_is_read() -> None:
    assert find_answer(r"\boxed{12}" + " x" * READ_CHARS, DEFAULT).reason == "no_answer"
    assert find_answer("x " * READ_CHARS + r"\boxed{12}", DEFAULT).text == "12"
    # The cut goes through a number, whose end would be another one.
    cut = "5" * 20 + " " + "x" * (READ_CHARS - 10)
    assert find_answer(cut, ("last_number",)).reason == "no_answer"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("12", "12"),
        ("2*6=<<2*6=12>>12\n#### 12", "12"),
        (r"so $\boxed{\frac12}$", r"\frac12"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
    ],
)
def test_gold_answers(reference: str, answer: str) -> None:
    assert gold_answer(reference) == Found(answer)


@given(TEXTS)
def test_any_text_has_an_answer_or_a_reason(text: str) -> None:
    found = find_answer(text, ("boxed", "final", "last_number"))
    assert bool(found.text) != bool(found.reason)
    assert found.text in text or ", " in found.text or found.text.endswith("%")
    gold_answer(text)


@given(TEXTS, TEXTS)
def test_spelling_takes_any_text(gold: str, answer: str) -> None:
    pair = align(spell(gold), spell(answer))
    assert settle(*pair, 6) in (True, False, None)
    golds, answers = variants(*pair)
    assert 1 <= len(golds) <= 2 and 1 <= len(answers) <= 2


@given(TEXTS)
def test_a_box_ends_the_search(text: str) -> None:
    """What stands before a last box that closes does not matter, if its braces do."""
    assert find_answer(text.replace("{", "").replace("}", "").rstrip("\\") + r" \boxed{12}", DEFAULT) == Found("12")


NUMBERS = st.fractions(-(10**9), 10**9).map(lambda f: Fraction(round(f * 10**4), 10**4))


def written(value: Fraction, thousands: str, zeros: int) -> str:
    """A number as people write it: with separators and useless zeros."""
    whole, rest = divmod(abs(value), 1)
    digits = f"{int(rest * 10**4):04d}".rstrip("0")
    decimals = (digits + "0" * zeros) if digits or zeros else ""
    sign = "-" if value < 0 else ""
    return f"{sign}{int(whole):,}".replace(",", thousands) + (f".{decimals}" if decimals else "")


@given(NUMBERS, st.sampled_from([",", "", r"{,}", r"\,", r",\!", " "]), st.integers(0, 2))
def test_a_number_has_one_spelling(value: Fraction, thousands: str, zeros: int) -> None:
    text = written(value, thousands, zeros)
    spelled = spell(text)
    assert plain_number(spelled.text) == value
    assert spelled == spell(spelled.text), "spelling twice changes nothing"
    for clothed in (
        f"${text}$",
        rf"\({text}\)",
        rf"\${text}",
        f"**{text}**.",
        rf"{text}\text{{ cm}}^2",
        f"{text} apples",
    ):
        assert spell(clothed) == spelled, clothed
    for percent in (f"{text}%", rf"${text}\%$", f"{text} percent"):
        assert spell(percent) == Spelling(spelled.text, percent=True), percent


@given(NUMBERS, NUMBERS)
def test_plain_numbers_are_compared_exactly(one: Fraction, other: Fraction) -> None:
    gold, answer = spell(written(one, ",", 0)), spell(written(other, "", 1))
    assert settle(gold, answer, 6) is (one == other)
    assert settle(gold, gold, 6) is True


def test_percent_on_one_side_only() -> None:
    def same(gold: str, answer: str) -> bool | None:
        return settle(spell(gold), spell(answer), 6)

    assert [same("50", "50%"), same("50%", "50"), same("50%", "0.5"), same("0.5", "50%")] == [True] * 4
    assert [same("50%", "5%"), same("50", "0.5"), same("0.5", "50")] == [False] * 3


def test_more_decimals_than_compared_are_left_to_algebra() -> None:
    assert settle(spell("0.1234567"), spell("0.1234568"), 6) is None
    assert settle(spell("0.1234567"), spell("0.1234568"), 7) is False


@pytest.mark.parametrize(
    ("gold", "answer", "left"),
    [
        ("5", "x = 5", ("5", "5")),
        ("x = 5", "5", ("5", "5")),
        ("5", "2 + 3 = 5", ("5", "5")),
        ("1234", "x = 1,234", ("1234", "1234")),
        ("1, 2", "x = 1, y = 2", ("1, 2", "x = 1, y = 2")),
        ("55", r"\sum_{n=1}^{10} n", ("55", r"\sum_{n=1}^{10} n")),
        (r"10\pi", r"A = 10\pi \approx 31.4", (r"10\pi", r"10\pi")),
        ("31.4", r"x \approx 31.4", ("31.4", "31.4")),
        ("x = 5", "y = 5", ("x = 5", "y = 5")),
    ],
)
def test_names_that_only_one_side_has(gold: str, answer: str, left: tuple[str, str]) -> None:
    pair = align(spell(gold), spell(answer))
    assert (pair[0].text, pair[1].text) == left
