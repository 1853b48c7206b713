"""Brings the answers to a math question into one spelling: `$1{,}234.50 \\text{ dollars}$` and `1234.5` become the same text.

Not a parser: what is math stays as it is, and only its clothes change. What is taken off: dollar signs and delimiters,
`\\left`, thin spaces, thousands separators, currency, units, degrees, a full stop. Units are not compared: `5 cm` and `5 m` are
the same answer, as in the scoring of the MATH data set (Hendrycks et al., arXiv 2103.03874).

`settle` decides what needs no algebra: plain numbers (exact rational comparison) and texts. Everything else is left to a
child process that runs math-verify.
"""

import dataclasses
import re
from fractions import Fraction

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys("€£¥₹", ""),
        "％": "%",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
        "≈": r"\approx ",
        "²": "^2",
        "³": "^3",
        "½": r"\frac{1}{2}",
    }
)
# In this order: later ones rely on earlier ones. A backslash after another one ends a row of a matrix.
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\\(?:left|right)(?=\s*[\\()\[\]|.{}<>])\.?|\\(?:displaystyle|textstyle|limits)\b|(?<!\\)\\!\s*", ""),
        (r"\\[dtc]frac\b", r"\\frac"),
        (r"\\(?:text(?:rm|bf|it|sf|normal)|mathrm|mathbf|mathit|mbox)\s*\{", r"\\text{"),
        (r"\s*\{\s*,\s*\}\s*", ","),
        (r"(?<=[0-9])(?:\\[,;: ]|~)(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad\b", " "),
        (r"(?<!\\)\\\$|\$", ""),
        (r"(?<!\\)\\%", "%"),
        (r"\\(?:varnothing|O)\b", r"\\emptyset"),
        (r"√\s*\(?([0-9]+)\)?|(?<!\\)\bsqrt\s*\(?([0-9]+)\)?", r"\\sqrt{\1\2}"),
        (r"(?<![\\A-Za-z])(sqrt|pi|infinity)(?![A-Za-z])", lambda m: rf"\{m[1].replace('infinity', 'infty')} "),
        (r"\*\*", "^"),
        (r"\^(-?[0-9]{2,})", r"^{\1}"),
        (r"\s+", " "),
    )
]
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_TEXT_UNIT = re.compile(r"(?<=[0-9})%])\s*\\text\{([^{}]*)\}\s*(?:\^\{?[0-9]\}?)?$")
_DEGREES = re.compile(r"\s*(?:\^\{?\s*\\circ\s*\}?|\\degree\b)\s*[CF]?$")
_PERCENT = re.compile(r"\s*(?:%|\\text\{\s*(?:percent|%)\s*\}|\bpercent\b)$", re.IGNORECASE)

_DIGITS = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"[-+]?\s?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_VALUE = rf"(?P<value>{_NUMBER}\s?%?|[-+]?\s?(?:[0-9]+\s)?[0-9]+\s?/\s?[0-9]+|[-+]?\s?[0-9]*\s?\\frac\{{[0-9]+\}}\{{[0-9]+\}})"
_NUMBER_WITH_UNIT = re.compile(
    _VALUE
    # A unit has three letters and stands apart, is one of a few that are written close, or is Chinese.
    + r"(?:\s(?P<words>[A-Za-z]{3}[A-Za-z.'/ -]*(?:\^\{?[23]\}?)?)"
    r"|\s?(?:(?:sq |cu )?(?:[cmk]m|km/h|kg|mg|m[lL]|mph|ft|in|yd|oz|lbs?|hrs?|mins?|secs?)\b\.?(?:\^\{?[23]\}?)?)"
    r"|\s?[\u4e00-\u9fff]+)$"
)
# fmt: off
_NOT_UNITS = frozenset((
    "and", "or", "to", "plus", "minus", "times", "over", "out", "divided", "mod", "the", "sqrt", "sin", "cos", "tan", "log", "exp",
))
# fmt: on
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MIXED = re.compile(r"([-+]?)\s?([0-9]+)\s([0-9]+)\s?/\s?([0-9]+)")
_SCIENTIFIC = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,2})")
_REPEATING = re.compile(r"([-+]?)([0-9]{0,9})\.([0-9]{0,9})\\(?:overline|bar)\s?\{?([0-9]{1,9})\}?")
_PLAIN = re.compile(rf"({_NUMBER})")
_EQUALS_OR_BRACE = re.compile(r"(?<![<>!\\:=])=(?!=)|[{}()\[\]]")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?")
_NAME_EQUALS = re.compile(rf"{_NAME.pattern}\s*=(?!=)\s*")
_LINKS = re.compile(r"[,;]|\b(?:and|or)\b")
_LETTER_UNIT = re.compile(rf"{_VALUE}\s[A-Za-z]")
# Four letters, or three with another word: shorter ones may be a product of variables.
_WORDS = re.compile(r"(?=.*[A-Za-z]{4}|.*[A-Za-z]{3}.* |.* .*[A-Za-z]{3})[A-Za-z][A-Za-z'’ -]*")
_LETTERS = re.compile(r"(?:\\(?:angle|triangle)\b\s?)?([A-Za-z](?:\s?[A-Za-z])*)")
_DATE = re.compile(r"[0-9]{4}([-/])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([-/])[0-9]{1,2}\2(?:[0-9]{2}){1,2}")
# What no sum or quotient looks like: `2023-1-2` may be 2020.
_SURE_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}/[0-9]{1,2}/[0-9]{1,2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}")
_CLOCK = re.compile(r"0?([0-9]{1,2}):([0-9]{2})")
_BASE = re.compile(r"([0-9A-Za-z]+)_\{?([0-9]+)\}?")


@dataclasses.dataclass(frozen=True, slots=True)
class Spelling:
    """An answer in the one spelling. Example: `spell("12.50\\\\%") == Spelling("12.5", percent=True)`."""

    text: str
    percent: bool = False
    words: bool = False
    """True where it is text and not math: `\\\\text{east}`, `Monday`."""


def spell(answer: str) -> Spelling:
    """Return an answer in the one spelling; its text may be empty. Example: `spell("$1{,}234$").text == "1234"`."""
    text = _bare(answer).translate(_SIGNS)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _bare(text)
    wrapped = _WHOLE_TEXT.fullmatch(text)
    if wrapped:
        text = _bare(wrapped.group(1))
    text = _without_unit(text)
    percent = _PERCENT.search(text)
    if percent:
        text = _bare(text[: percent.start()])
    if mixed := _MIXED.fullmatch(text):
        text = rf"{mixed[1]}{mixed[2]}\frac{{{mixed[3]}}}{{{mixed[4]}}}"
    elif scientific := _SCIENTIFIC.fullmatch(text):
        text = rf"{scientific[1]} \cdot 10^{{{int(scientific[2])}}}"
    elif repeating := _REPEATING.fullmatch(text):
        text = _repeating(*repeating.groups())
    if (number := plain_number(text)) is not None:
        return Spelling(_decimal(number, text), bool(percent))
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    is_words = bool(wrapped and len(text) > 1) or bool(_WORDS.fullmatch(text))
    return Spelling(text, bool(percent), is_words)


def plain_number(text: str) -> Fraction | None:
    """Return the value of an integer or a decimal with its thousands separators, None for anything else.

    Example: `plain_number("1,234.50") == Fraction(2469, 2)`.
    """
    if not _PLAIN.fullmatch(text):
        return None
    return Fraction(text.replace(",", "").replace(" ", ""))


def settle(gold: Spelling, answer: Spelling, decimals: int) -> bool | None:
    """Return whether two answers are the same where that needs no algebra; None where it does.

    Plain numbers are compared exactly, as rationals, where both have at most `decimals` decimals: then math-verify, which
    rounds to that many, says the same. With a percent sign on one side only, `50%` is both `50` and `0.5`. Texts are
    compared as texts, whatever the case: to math-verify `east` is a product of letters and equal to `seat`. So are two and
    more letters alone, and lists of them, since an order, a choice or a short word (`BAC`, `AC`, `no`) is a more usual answer
    than a product: `xy` is `x \\cdot y`, but neither `yx` nor `y \\cdot x`. A gold answer with any other sign of math in it
    (`2xy`, `x \\cdot y`) is a product. Dates are compared number by number.
    """
    if gold.text == answer.text and gold.text:
        return True
    if gold.words or r"\text{" in gold.text:
        same_text = _folded(gold.text) == _folded(answer.text)
        if same_text or gold.words:
            return same_text
    if (same_letters := _same_letters(gold.text, answer.text)) is not None:
        return same_letters
    if _DATE.fullmatch(gold.text) or _SURE_DATE.fullmatch(answer.text):
        # To math-verify 2023-01-02 is 2020.
        numbers = [[int(n) for n in re.findall("[0-9]+", text)] for text in (gold.text, answer.text)]
        return bool(_DATE.fullmatch(gold.text) and _DATE.fullmatch(answer.text)) and numbers[0] == numbers[1]
    for form in (_CLOCK, _BASE):
        # To math-verify 12:30 is a quotient, and the base of 101_2 is no part of it.
        one, other = form.fullmatch(gold.text), form.fullmatch(answer.text)
        if one and other:
            return one.groups() == other.groups()
    values = plain_number(gold.text), plain_number(answer.text)
    if values[0] is None or values[1] is None:
        return None
    if any(len(text.partition(".")[2]) > decimals for text in (gold.text, answer.text)):
        return None
    if values[0] == values[1]:
        return True
    if gold.percent != answer.percent:
        return values[0] == values[1] / 100 if answer.percent else values[0] / 100 == values[1]
    return False


def align(gold: Spelling, answer: Spelling) -> tuple[Spelling, Spelling]:
    """Return both without the names that only one of them has. Example: gold `5` and answer `x = 2+3 = 5`: `5` and `5`.

    Of a chain only the end counts, or `1 = 2 = 3` would be right three times; of `10\\pi \\approx 31.4` what is exact.
    """
    if len(_sides(gold.text)) == 1:
        exact, approx, about = answer.text.partition(r"\approx")
        text = about if approx and (not exact.strip() or _NAME.fullmatch(exact.strip())) else exact
        sides = _sides(text)
        # `x = 1, y = 2` is a list; `x = 1,234` is not.
        is_chain = not _LINKS.search(text) or (len(sides) == 2 and plain_number(sides[1].strip()) is not None)
        if is_chain and sides[-1] != answer.text:
            return gold, dataclasses.replace(spell(sides[-1]), percent=answer.percent)
    elif len(_sides(answer.text)) == 1 and (name := _NAME_EQUALS.match(gold.text)):
        return dataclasses.replace(spell(gold.text[name.end() :]), percent=gold.percent), answer
    return gold, answer


def variants(gold: Spelling, answer: Spelling) -> tuple[list[str], list[str]]:
    """Return what math-verify is asked: texts of the gold answer and of the other; one pair that is equal is enough.

    Example: `variants(Spelling("\\frac{1}{2}"), Spelling("50", percent=True)) == (["\\frac{1}{2}"], ["50", "(50)/100"])`.
    """
    golds, answers = [gold.text], [answer.text]
    letter_unit = _LETTER_UNIT.fullmatch(answer.text)
    if letter_unit and not re.search(r"[A-Za-z]", re.sub(r"\\[a-z]+", "", gold.text)):
        answers = [letter_unit["value"]]  # `5 m`, where the gold answer has no variable that m could be.
    if gold.percent != answer.percent:
        side = answers if answer.percent else golds
        side.append(f"({side[0]})/100")
    return golds, answers


def _sides(text: str) -> list[str]:
    """Return what stands between the equals signs; one within braces, as in `\\sum_{n=1}`, is none."""
    depth, start, sides = 0, 0, []
    for match in _EQUALS_OR_BRACE.finditer(text):
        if match.group() == "=" and depth == 0:
            sides.append(text[start : match.start()])
            start = match.end()
        else:
            depth += (match.group() in "{([") - (match.group() in "})]")
    return [*sides, text[start:]]


def _bare(text: str) -> str:
    """Strip space, emphasis and what ends a sentence; not `!`, which is the factorial."""
    return text.strip().lstrip("*` ").rstrip("*`.,;:。，； ")


def _folded(text: str) -> str:
    """Return a text without what does not matter in one: case, parentheses of choices, space."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).casefold().replace("’", "'")
    return re.sub(r"\s*,\s*", ",", " ".join(re.sub(r"[().]", " ", text).split()))


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
    items = [_LETTERS.fullmatch(item.strip()) for item in re.split(r"[,;]|\s(?:and|or)\s", text)]
    found = [item[1].replace(" ", "").casefold() for item in items if item]
    return sorted(found) if len(found) == len(items) else None


def _without_unit(text: str) -> str:
    text = _DEGREES.sub("", text)
    unit = _TEXT_UNIT.search(text)
    if unit and not _is_scale_or_link(unit.group(1)):
        text = text[: unit.start()]
    elif unit:
        text = f"{text[: unit.start()]} {unit.group(1).strip()}"
    found = _NUMBER_WITH_UNIT.fullmatch(text)
    if not found:
        return _bare(text)
    words = (found["words"] or "").lower().replace(".", " ").split()
    scale = 1
    while words and words[0] in _SCALES:
        scale *= _SCALES[words.pop(0)]
    if words and words[0] in _NOT_UNITS:
        return _bare(text)
    value = plain_number(found["value"].strip())
    if scale > 1:
        return _decimal(value * scale) if value is not None else _bare(text)
    if words[:1] == ["percent"]:
        return f"{found['value']}%"
    return _bare(found["value"])


def _is_scale_or_link(words: str) -> bool:
    first = words.split()[:1]
    return bool(first) and (first[0].lower() in _SCALES or first[0].lower() in _NOT_UNITS)


def _repeating(sign: str, whole: str, fixed: str, period: str) -> str:
    """Return `0.1\\overline{6}` as a fraction: 15/90."""
    scale = 10 ** len(fixed)
    value = Fraction(int(f"0{whole}{fixed}")) + Fraction(int(period), 10 ** len(period) - 1)
    value /= scale
    return rf"{sign}\frac{{{value.numerator}}}{{{value.denominator}}}"


def _decimal(value: Fraction, written: str = "") -> str:
    """Return a decimal without separators or useless zeros. Only powers of ten were divided by, so it ends."""
    sign, digits = "-" if value < 0 else "", abs(value)
    whole, rest = divmod(digits, 1)
    if not rest:
        return f"{sign}{whole}"
    places = len(written.partition(".")[2]) or 12
    return f"{sign}{whole}.{int(rest * 10**places):0{places}d}".rstrip("0")
