"""Sets of real numbers, told by inequalities or as intervals, in the one form of intervals.

`x < 1 \\text{ or } x \\ge 2`, `2 \\le x \\text{ or } 1 > x` and `\\{x : x < 1\\} \\cup [2, \\infty)` are all `(-\\infty,1)\\cup[2,\\infty)`.
math-verify compares unions of intervals, but takes `or` and `and` for the same, and does not turn `3 > x > -1`.
"""

import dataclasses
import re

from fusion.verifiers.notation import BRACKETS, cut

_OR = re.compile(rf"\\text\{{\s*or\s*\}}|\bor\b|\\(?:cup|lor|vee)(?![A-Za-z])|或|{BRACKETS}")
_AND = re.compile(rf"\\text\{{\s*and\s*\}}|\band\b|\\(?:land|wedge)(?![A-Za-z])|且|{BRACKETS}")
_COMMA = re.compile(rf",|{BRACKETS}")
RELATION = re.compile(r"(<=|>=|<|>|\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![A-Za-z]))")
"""What stands between the sides of an inequality."""
_VARIABLE = re.compile(
    r"[A-Za-df-hj-z](?:_\{?[0-9]\}?)?|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![A-Za-z])"
)
_SET = re.compile(rf"\\\{{\s*({_VARIABLE.pattern})\s*(?:\\in\s*\\mathbb\{{R\}}\s*)?(?::|\||\\mid(?![A-Za-z]))(.*)\\\}}")
_MEMBER = re.compile(rf"({_VARIABLE.pattern})\s*\\in(?![A-Za-z])(.*)")


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """An interval with its brackets, and the variable that it is told of, if any. Example: `Interval("[2", "\\\\infty)", "x")`."""

    low: str
    high: str
    variable: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals as text. Example: that of `x < 1` is `Region("(-\\\\infty,1)", "x")`."""

    text: str
    variable: str = ""
    """The letter that inequalities tell it of, empty for intervals alone."""


def regions(text: str) -> list[Region]:
    """Return what a text may tell, none where it tells no set of real numbers; two where a comma is `and` or `or`.

    Example: `[r.text for r in regions("x > 1, x < 3")] == ["(1,3)", "(-\\\\infty,3)\\\\cup(1,\\\\infty)"]`.
    """
    whole = _union(text)
    if whole:
        return [whole]
    parts = [part.strip() for part in cut(text, _COMMA)]
    if len(parts) != 2:
        return []
    both = (_union(f"{parts[0]} and {parts[1]}"), _union(f"{parts[0]} or {parts[1]}"))
    return [region for region in both if region and region.variable]


def _union(text: str) -> Region | None:
    """Return the region of parts between which stands `or`."""
    parts = [_part(part.strip()) for part in cut(text, _OR)]
    found = [interval for part in parts for interval in part]
    variables = {interval.variable for interval in found} - {""}
    if not all(parts) or len(variables) > 1:
        return None
    return Region(r"\cup".join(sorted(f"{one.low},{one.high}" for one in found)), min(variables, default=""))


def _part(text: str) -> list[Interval]:
    """Return the intervals of a set, `\\{x : x < 1\\}`, or the one that is told without; none where something tells none."""
    told = _SET.fullmatch(text)
    inside = [_told(part.strip()) for part in (cut(told[2], _OR) if told else [text])]
    found = [interval for interval in inside if interval]
    is_of_it = told is None or {interval.variable for interval in found} - {""} == {told[1]}
    return found if len(found) == len(inside) and is_of_it else []


def _told(text: str) -> Interval | None:
    """Return the interval that a membership, inequalities or itself tell."""
    if told := _MEMBER.fullmatch(text):
        inside = _interval(told[2].strip())
        return dataclasses.replace(inside, variable=told[1]) if inside else None
    return _bounded(text) if RELATION.search(text) else _interval(text)


def _bounded(text: str) -> Interval | None:
    """Return the interval of one inequality, or of a lower and an upper bound with `and` between them."""
    match [_chain(part.strip()) for part in cut(text, _AND)]:
        case [one]:
            return one
        case [one, other]:
            return _common(one, other)
        case _:
            return None


def _common(one: Interval | None, other: Interval | None) -> Interval | None:
    """Return what a lower and an upper bound have in common: of `x > 1` and `x < 3` it is `(1,3)`."""
    if one is None or other is None or one.variable != other.variable:
        return None
    if one.low == r"(-\infty":
        one, other = other, one
    is_between = one.high == r"\infty)" and other.low == r"(-\infty"
    return Interval(one.low, other.high, one.variable) if is_between else None


def _chain(text: str) -> Interval | None:
    """Return the interval of `x < b`, `a \\le x`, `a \\le x < b` or `b > x \\ge a`."""
    first, *rest = RELATION.split(text)
    terms = [_term(term) for term in (first, *rest[1::2])]
    is_rising = {sign.startswith(("<", r"\l")) for sign in rest[::2]}
    closed = [sign not in ("<", ">", r"\lt", r"\gt") for sign in rest[::2]]
    if len(terms) not in (2, 3) or len(is_rising) != 1:
        return None
    if is_rising == {False}:
        terms, closed = terms[::-1], closed[::-1]
    if len(terms) == 2:
        ends = [bool(_VARIABLE.fullmatch(term)) for term in terms]
        if ends == [True, False]:
            terms, closed = [r"-\infty", *terms], [False, *closed]
        elif ends == [False, True]:
            terms, closed = [*terms, r"\infty"], [*closed, False]
        else:
            return None
    low, variable, high = terms
    if not _VARIABLE.fullmatch(variable) or not all(_is_bound(term, variable) for term in (low, high)):
        return None
    return Interval(f"{'[' if closed[0] else '('}{low}", f"{high}{']' if closed[1] else ')'}", variable)


def _interval(text: str) -> Interval | None:
    """Return the interval that is written as one, `[1, 2)`."""
    if text[:1] not in "([" or text[-1:] not in ")]" or len(text) < 5:
        return None
    match [_term(term) for term in cut(text[1:-1], _COMMA)]:
        case [low, high] if _is_bound(low, "") and _is_bound(high, ""):
            return Interval(f"{text[0]}{low}", f"{high}{text[-1]}")
        case _:
            return None


def _term(text: str) -> str:
    """Return a bound or variable without what does not matter."""
    return re.sub(r"^\+(?=\\infty)", "", " ".join(text.split()))


def _is_bound(text: str, variable: str) -> bool:
    """Tell whether a text may bound a variable: it has something, no comma, and not the variable itself."""
    beside = text if variable.startswith("\\") else re.sub(r"\\[A-Za-z]+", "", text)
    return bool(text) and "," not in text and not (variable and variable in beside)
