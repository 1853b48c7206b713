"""Sets of real numbers in one form: however inequalities tell a set, it is the same text, and that of no other set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.verifiers.intervals import regions
from fusion.verifiers.notation import spell


def texts(answer: str) -> list[str]:
    return [region.text for region in regions(spell(answer).text)]


@pytest.mark.parametrize(
    ("answer", "region"),
    [
        ("x < 3", r"(-\infty,3)"),
        (r"3 \leqslant t", r"[3,\infty)"),
        ("x >= 3", r"[3,\infty)"),
        (r"-\infty < x \le 3", r"(-\infty,3]"),
        (r"\frac{1}{2} < \theta < 2\pi", r"(\frac{1}{2},2\pi)"),
        (r"1 \le x \le 2 \text{ or } 3 < x < 4", r"(3,4)\cup[1,2]"),
        (r"x \in [0, +\infty)", r"[0,\infty)"),
        (r"\{x \mid x < 1 \text{ or } x > 2\}", r"(-\infty,1)\cup(2,\infty)"),
        (r"\{ y : 0 < y \text{ and } y < 1 \}", "(0,1)"),
        ("]0, 1[ ∪ ]2, 3]", r"(0,1)\cup(2,3]"),
        (r"x < 1 或 x > 2", r"(-\infty,1)\cup(2,\infty)"),
    ],
)
def test_sets_and_their_intervals(answer: str, region: str) -> None:
    assert texts(answer) == [region]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "5",
        "x",
        "x = 5",
        "1 < 2",
        "a < x",
        "x < x + 1",
        "x < 3 > y",
        "1 < x < 2 < 3",
        "x < 1 and x < 2",
        "x < 1 or y > 2",
        "x < 1 and x > 2 and x > 3",
        r"x \ne 1",
        "x < 1,000,000, y",
        "(1,2,3)",
        r"\{1, 2\}",
        r"\{x : y < 1\}",
        r"x \in x \in (1,2)",
        r"\{x : " * 200 + "x < 1" + r"\}" * 200,
        "<" * 500,
    ],
)
def test_what_tells_no_set(answer: str) -> None:
    assert texts(answer) == []


def test_a_comma_is_and_or_or() -> None:
    assert texts("x > 1, x < 3") == ["(1,3)", r"(-\infty,3)\cup(1,\infty)"]


BOUNDS = st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True).map(sorted)


@given(BOUNDS.filter(lambda bounds: len(bounds) % 2 == 0), st.data())
def test_one_set_however_it_is_told(bounds: list[int], data: st.DataObject) -> None:
    """Each way to write each interval, in any order; and with one bracket turned it is another set."""
    intervals = [
        (low, data.draw(st.booleans()), high, data.draw(st.booleans()))
        for low, high in zip(bounds[::2], bounds[1::2], strict=True)
    ]

    def told(low: int, low_in: bool, high: int, high_in: bool) -> list[str]:
        under, over = ("\\le" if low_in else "<"), ("\\le" if high_in else "<")
        back_under, back_over = under.replace("<", ">").replace("l", "g"), over.replace("<", ">").replace("l", "g")
        return [
            f"{'[' if low_in else '('}{low}, {high}{']' if high_in else ')'}",
            f"{'[' if low_in else ']'}{low}; {high}{']' if high_in else '['}",
            f"{low} {under} x {over} {high}",
            f"{high} {back_over} x {back_under} {low}",
            f"x {over} {high} \\text{{ and }} {low} {under} x",
            f"\\{{x : {low} {under} x {over} {high}\\}}",
        ]

    def draw(parts: list[tuple[int, bool, int, bool]]) -> list[str]:
        link = data.draw(st.sampled_from([" \\cup ", " or ", " \\text{ or } "]))
        return texts(link.join(data.draw(st.sampled_from(told(*part))) for part in data.draw(st.permutations(parts))))

    region = draw(intervals)
    assert len(region) == 1
    assert draw(intervals) == region
    low, low_in, high, high_in = intervals[0]
    assert draw([(low, not low_in, high, high_in), *intervals[1:]]) != region
