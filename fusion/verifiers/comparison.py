"""Whether two answers in one spelling are the same, where that needs no algebra; and what algebra is asked where it does.

In this order: `align` takes off what only one of two answers has, `settle` decides about plain numbers (exact rational
comparison), texts, choices, dates and times, and `variants` says what is asked of the child process that runs math-verify.
"""

import dataclasses
import re
from fractions import Fraction

from fusion.verifiers.intervals import RELATION, Region, regions
from fusion.verifiers.notation import BRACKETS, Spelling, cut, spell
from fusion.verifiers.units import LETTER_UNIT, plain_number

_EQUALS_OR_BRACE = re.compile(rf"(?<![<>!\\:])=(?!=)|{BRACKETS}")
_LINK_OR_BRACE = re.compile(rf"\\text\{{\s*(?:and|or)\s*\}}|,\s*(?:and|or)\b|[,;]|\b(?:and|or)\b|{BRACKETS}")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?")
_NAME_EQUALS = re.compile(rf"{_NAME.pattern}\s*=(?!=)\s*")
# `2x = 5` is an equation that nobody has solved, `a + b = 5` may well be what was asked for.
_MULTIPLE = re.compile(r"\s*(?:-\s?[0-9]*|[0-9]+)\s?[A-Za-z]\s*")
_LINKS = re.compile(r"[,;]|\b(?:and|or)\b")
_LETTERS = re.compile(r"(?:\\(?:angle|triangle)\b\s?)?([A-Za-z](?:\s?[A-Za-z])*)")
_CHOICE = re.compile(
    r"(?:\\text\{)?\s*(?:(?i:option|choice)\s+\(?([A-J])\)?|\(([A-J])\)|([A-J])[).:])\s*\}?(?:\s.*)?", re.DOTALL
)
_DATE = re.compile(r"[0-9]{4}([-/])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([-/])[0-9]{1,2}\2(?:[0-9]{2}){1,2}")
# What no sum or quotient looks like: `2023-1-2` may be 2020.
_SURE_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}/[0-9]{1,2}/[0-9]{1,2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}")
_CLOCK = re.compile(r"0?([0-9]{1,2}):([0-9]{2})(?: ([ap]m))?")
_BASE = re.compile(r"([0-9A-Za-z]+)_\{?([0-9]+)\}?")
_BARE_NUMBERS = re.compile(r"[0-9]+(?:, [0-9]+)+")


def spell_beside(gold: Spelling, answer: str) -> Spelling:
    """Return an answer in the one spelling, where the gold answer says how it is to be read.

    Beside a list, a comma before three digits is that of a list: gold `100, 200` and answer `100,200`. Beside the letter of a
    choice, what follows the letter does not matter: gold `B` and answers `(B) 12`, `option B`.
    """
    if _BARE_NUMBERS.fullmatch(gold.text):
        answer = re.sub(r"(?<=[0-9]),(?=[0-9])", ", ", answer)
    spelled = spell(answer)
    if re.fullmatch(r"[A-J]", gold.text) and (choice := _CHOICE.fullmatch(spelled.text)):
        return Spelling(choice[1] or choice[2] or choice[3])
    return spelled


def align(gold: Spelling, answer: Spelling) -> tuple[Spelling, Spelling]:
    """Return both without the names that only one of them has. Example: gold `5` and answer `x = 2+3 = 5`: `5` and `5`.

    Of a chain only the end counts, or `1 = 2 = 3` would be right three times; of `10\\pi \\approx 31.4` what is exact.
    """
    if (values := _named_values(gold.text)) and "=" not in answer.text:
        listed = answer.text if answer.text.startswith("(") else f"({answer.text})"
        return dataclasses.replace(gold, text=f"({','.join(values)})"), dataclasses.replace(answer, text=listed)
    if len(_sides(gold.text)) == 1:
        exact, approx, about = answer.text.partition(r"\approx")
        text = about if approx and (not exact.strip() or _NAME.fullmatch(exact.strip())) else exact
        sides = _sides(text)
        # `x = 1, y = 2` is a list; `x = 1,234` is not.
        is_chain = not _LINKS.search(text) or (len(sides) == 2 and plain_number(sides[1].strip()) is not None)
        if is_chain and sides[-1] != answer.text and not (len(sides) == 2 and _MULTIPLE.fullmatch(sides[0])):
            is_turned = len(sides) == 2 and re.fullmatch(r"\s*[A-Za-z]\s*", sides[1]) and not _NAME.fullmatch(gold.text)
            return gold, dataclasses.replace(spell(sides[0 if is_turned else -1]), percent=answer.percent)
    elif len(_sides(answer.text)) == 1 and (name := _NAME_EQUALS.match(gold.text)):
        return dataclasses.replace(spell(gold.text[name.end() :]), percent=gold.percent), answer
    return gold, answer


def settle(gold: Spelling, answer: Spelling, decimals: int) -> bool | None:
    """Return whether two answers are the same where that needs no algebra; None where it does.

    Plain numbers are compared exactly, as rationals, where both have at most `decimals` decimals: then math-verify, which
    rounds to that many, says the same. With a percent sign on one side only, `50%` is both `50` and `0.5`. Texts are
    compared as texts, whatever the case: to math-verify `east` is a product of letters and equal to `seat`. So are two and
    more letters alone, and lists of them, since an order, a choice or a short word (`BAC`, `AC`, `no`) is a more usual answer
    than a product: `xy` is `x \\cdot y`, but neither `yx` nor `y \\cdot x`. A gold answer with any other sign of math in it
    (`2xy`, `x \\cdot y`) is a product. Dates and times are compared number by number, and lists have as many members as
    the gold one, so that `1, 2` is not `1, 1, 2`.
    """
    if gold.text == answer.text and gold.text:
        return True
    if gold.words or r"\text{" in gold.text:
        same_text = _folded(gold.text) == _folded(answer.text) or (gold.words and _same_choices(gold.text, answer.text))
        if same_text or gold.words:
            return same_text
    if (same_letters := _same_letters(gold.text, answer.text)) is not None:
        return same_letters
    if (same_time := _same_date_or_time(gold.text, answer.text)) is not None:
        return same_time
    if (same_region := _same_region(gold.text, answer.text)) is not None:
        return same_region
    if (same_numbers := _same_numbers(gold.text, answer.text, decimals)) is not None:
        return same_numbers
    if _differ_in_form(gold.text, answer.text):
        return False
    values = _plain_numbers([gold.text, answer.text], decimals)
    if values is None:
        return None
    expected, found = values
    if expected == found:
        return True
    if gold.percent != answer.percent:
        return expected == found / 100 if answer.percent else expected / 100 == found
    return False


def variants(gold: Spelling, answer: Spelling) -> tuple[list[str], list[str]]:
    """Return what math-verify is asked: texts of the gold answer and of the other; one pair that is equal is enough.

    Example: `variants(Spelling("\\frac{1}{2}"), Spelling("50", percent=True)) == (["\\frac{1}{2}"], ["50", "(50)/100"])`.
    """
    told = _told_regions(gold.text, answer.text)
    if told:
        return [region.text for region in told[0]], [region.text for region in told[1]]
    golds, answers = [_both_signs(gold.text)], [_both_signs(answer.text)]
    letter_unit = LETTER_UNIT.fullmatch(answer.text)
    if letter_unit and not re.search(r"[A-Za-z]", re.sub(r"\\[a-z]+", "", gold.text)):
        answers = [letter_unit["value"]]  # `5 m`, where the gold answer has no variable that m could be.
    if gold.percent != answer.percent:
        side = answers if answer.percent else golds
        side.append(f"({side[0]})/100")
    return golds, answers


def _both_signs(text: str) -> str:
    """Return `\\frac{1 \\pm x}{2}` as the list of both, which math-verify reads only outside of a fraction."""
    if text.count(r"\pm") != 1 or "=" in text or _LINKS.search(text) or r"\mp" in text:
        return text
    return ", ".join(text.replace(r"\pm", sign) for sign in "+-")


# ---- parts ------------------------------------------------------------------------------------


def _sides(text: str) -> list[str]:
    """Return what stands between the equals signs."""
    return cut(text, _EQUALS_OR_BRACE)


def _items(text: str) -> list[str]:
    """Return the members of a list that has no brackets around it: `["1", "2"]` of `1 \\text{ and } 2`."""
    return [item.strip() for item in cut(text, _LINK_OR_BRACE) if item.strip()]


def _named_values(text: str) -> list[str]:
    """Return the values in `x = 1, y = 2`, in their order; none where a name comes twice or something has no name."""
    items = [_sides(item) for item in _items(text)]
    if len(items) < 2 or any(len(sides) != 2 or not _NAME.fullmatch(sides[0].strip()) for sides in items):
        return []
    names = [sides[0].strip() for sides in items]
    return [sides[1].strip() for sides in items] if len(set(names)) == len(names) else []


# ---- texts, choices, dates, forms -----------------------------------------------------------------


def _folded(text: str) -> str:
    """Return a text without what does not matter in one: case, parentheses of choices, space."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).casefold().replace("’", "'")
    return re.sub(r"\s*,\s*", ",", " ".join(re.sub(r"[().]", " ", text).split()))


def _same_choices(gold: str, answer: str) -> bool:
    """Return whether both are the same single letters, whatever their order: `A, B` and `B and A`."""
    expected = _letters(gold)
    return expected is not None and max(map(len, expected)) == 1 and expected == _letters(answer)


def _same_letters(gold: str, answer: str) -> bool | None:
    """Return whether letters alone are the same in the same order; None where the gold answer is something else.

    Example: True for `AB, CD` and `CD, A B`; False for `BAC` and `C \\cdot A \\cdot B`; None for `xy` and `x \\cdot y`.
    """
    expected, found = _letters(gold), _letters(answer)
    if expected is None or max(map(len, expected)) == 1:
        return None
    if found is not None:
        return expected == found
    letters = re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", answer).casefold()
    is_permuted = len(expected) == 1 and letters != expected[0] and sorted(letters) == sorted(expected[0])
    return False if is_permuted else None


def _letters(text: str) -> list[str] | None:
    """Return the items of a list of letters alone, in one order: `["ab", "cd"]` of `CD, A B`."""
    text = re.sub(r"\\text\{(\s(?:and|or)\s)\}", r"\1", text)
    items = [_LETTERS.fullmatch(item.strip()) for item in re.split(r"[,;]|\s+(?:and|or)\s+", text)]
    found = [item[1].replace(" ", "").casefold() for item in items if item]
    return sorted(found) if len(found) == len(items) else None


def _same_date_or_time(gold: str, answer: str) -> bool | None:
    """Return whether both are the same date, time or number in a base; None where that is not what they are."""
    if _DATE.fullmatch(gold) or _SURE_DATE.fullmatch(answer):
        # To math-verify 2023-01-02 is 2020.
        numbers = [[int(n) for n in re.findall("[0-9]+", text)] for text in (gold, answer)]
        return bool(_DATE.fullmatch(gold) and _DATE.fullmatch(answer)) and numbers[0] == numbers[1]
    # To math-verify 12:30 is a quotient, and the base of 101_2 is no part of it.
    one, other = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(answer)
    if one and other:
        halves = {one[3], other[3]} - {None}
        return one.groups()[:2] == other.groups()[:2] and len(halves) < 2
    if one and (one[3] or one[2].startswith("0")):
        return False  # A time for sure; `10:30` may be a ratio.
    one, other = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if one and other:
        return one.groups() == other.groups()
    return None


def _told_regions(gold: str, answer: str) -> tuple[list[Region], list[Region]] | None:
    """Return the sets of real numbers that both tell, at least one of them by inequalities; None for anything else."""
    if not RELATION.search(f"{gold} {answer}"):
        return None
    golds, answers = regions(gold), regions(answer)
    return (golds, answers) if golds and answers else None


def _same_region(gold: str, answer: str) -> bool | None:
    """Return whether both tell the same set of real numbers of the same variable; None where algebra says it, or neither does.

    Example: True for `-1 < x < 3` and `3 > x > -1`; False for `-1 < x < 3` and `-1 < y < 3`, and for `2, 3` and `2 < x < 3`.
    """
    told = _told_regions(gold, answer)
    if told is None:
        is_numbers = all(plain_number(item) is not None for item in _items(gold))
        return False if is_numbers and RELATION.search(answer) and regions(answer) else None
    variables = {region.variable for region in (*told[0], *told[1])} - {""}
    if len(variables) > 1:
        return False
    return True if {region.text for region in told[0]} & {region.text for region in told[1]} else None


def _same_numbers(gold: str, answer: str, decimals: int) -> bool | None:
    """Return whether two lists have the same plain numbers, each as often; None where they are anything else."""
    golds, answers = _items(gold), _items(answer)
    if len(golds) < 2 or len(answers) < 2:
        return None
    expected, found = _plain_numbers(golds, decimals), _plain_numbers(answers, decimals)
    return None if expected is None or found is None else sorted(expected) == sorted(found)


def _plain_numbers(texts: list[str], decimals: int) -> list[Fraction] | None:
    """Return the values of plain numbers; None where one is anything else, or has more decimals than are compared."""
    values = [plain_number(text) for text in texts if len(text.partition(".")[2]) <= decimals]
    numbers = [value for value in values if value is not None]
    return numbers if len(numbers) == len(texts) else None


def _differ_in_form(gold: str, answer: str) -> bool:
    """Return True for what math-verify takes for the same: lists of different lengths, a set where the gold answer is a tuple,
    and `2x = 5` where it is 5."""
    if "=" not in gold and len(sides := _sides(answer)) == 2 and _MULTIPLE.fullmatch(sides[0]):
        return True
    if re.search(r"\\(?:pm|mp|cup|in)(?![A-Za-z])|[<>]|\\[lg]eq?(?![A-Za-z])", f"{gold} {answer}"):
        return False
    golds, answers = _items(gold), _items(answer)
    one_is_bracketed = any(len(items) == 1 and "," in items[0] for items in (golds, answers))
    if len(golds) != len(answers) and not one_is_bracketed:
        return bool(golds and answers)
    is_tuple = len(golds) == 1 and gold.startswith("(") and gold.endswith(")") and "," in gold
    return is_tuple and answer.startswith(r"\{")
