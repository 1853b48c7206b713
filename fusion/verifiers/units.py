"""Numbers as people write them, and what they put behind them: separators, units, degrees, percent, dozens and millions.

Units are not compared: `5 cm` and `5 m` are the same answer, as in the scoring of the MATH data set (Hendrycks et al., arXiv
2103.03874).
"""

import re
from fractions import Fraction

# An exponent, or a second unit below the first: `\text{m}/\text{s}^2`.
_POWER = r"(?:\^\{?-?[0-9]\}?)?"
_TEXT_UNIT = re.compile(
    rf"(?<=[0-9A-Za-z)}}%])\s*(?:\\text\{{([^{{}}]*)\}}\s*{_POWER}(?:\s*/\s*\\text\{{[^{{}}]*\}}\s*{_POWER})?"
    rf"|\\frac\{{\\text\{{([^{{}}]*)\}}\}}\{{\\text\{{[^{{}}]*\}}{_POWER}\}})$"
)
_DEGREES = re.compile(r"\s*(?:\^\{?\s*\\circ\s*\}?|\\degree\b)\s*(?:[CF]|\\text\{\s*[CF]\s*\})?$")
_ANGLES = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
PERCENT = re.compile(r"\s*(?:%|\\text\{\s*(?:percent|%)\s*\}|\bpercent\b)$", re.IGNORECASE)
# What ends a sentence, emphasis, and thin spaces; not `!`, which is the factorial.
_END = re.compile(r"(?:\\[,;: ]|[*`.,;:。，； ]|\\$)+$")

_DIGITS = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"[-+]?\s?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_FRACTION = r"\\frac\{[0-9]+\}\{[0-9]+\}"
_VALUE = (
    rf"(?P<value>{_NUMBER}\s?%?|[-+]?\s?(?:[0-9]+\s)?[0-9]+\s?/\s?[0-9]+|[-+]?\s?[0-9]*\s?{_FRACTION}"
    rf"|[-+]?\s?(?:{_FRACTION}|[0-9.]*)\s?(?:\\pi|\\sqrt\{{[0-9]+\}}))"
)
_NUMBER_WITH_UNIT = re.compile(
    _VALUE
    # A unit has three letters and stands apart, is one of a few that are written close, or is Chinese.
    + r"(?:\s(?P<words>[A-Za-z]{3}[A-Za-z.'/ -]*(?:\^\{?[23]\}?)?)"
    r"|\s?(?:(?:sq |cu )?(?:[cmk]?m/s|[cmk]m|km/hr?|mi/h|kg|mg|m[lL]|mph|mi|ft/s|ft|in|yd|oz|lbs?|hrs?|mins?|secs?)\b\.?"
    r"(?:\^\{?[23]\}?)?)"
    r"|\s?[\u4e00-\u9fff]+)$"
)
LETTER_UNIT = re.compile(rf"{_VALUE}\s[A-Za-jl-z](?:\^\{{?[23]\}}?)?")
# fmt: off
_NOT_UNITS = frozenset((
    "and", "or", "to", "plus", "minus", "times", "over", "out", "divided", "mod", "the", "sqrt", "sin", "cos", "tan", "log", "exp",
    "squared", "cubed", "factorial", "choose", "root", "pi", "k", "half", "halves", "third", "thirds", "fourth", "fourths",
    "quarter", "quarters", "fifth", "fifths", "sixth", "sixths", "eighth", "eighths", "ninths", "tenth", "tenths", "hundredth",
    "hundredths", "thousandth", "thousandths", "less", "more", "below", "above",
))
# fmt: on
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PLAIN = re.compile(rf"({_NUMBER})")


def bare(text: str) -> str:
    """Strip space, emphasis and what ends a sentence. Example: `bare("**7\\\\,**.") == "7"`."""
    return _END.sub("", text.strip().lstrip("*` "))


def plain_number(text: str) -> Fraction | None:
    """Return the value of an integer or a decimal with its thousands separators, None for anything else.

    Example: `plain_number("1,234.50") == Fraction(2469, 2)`.
    """
    if not _PLAIN.fullmatch(text):
        return None
    return Fraction(text.replace(",", "").replace(" ", ""))


def decimal(value: Fraction, written: str = "") -> str:
    """Return a decimal without separators or useless zeros. Only powers of ten were divided by, so it ends."""
    sign, digits = "-" if value < 0 else "", abs(value)
    whole, rest = divmod(digits, 1)
    if not rest:
        return f"{sign}{whole}"
    places = len(written.partition(".")[2]) or 12
    return f"{sign}{whole}.{int(rest * 10**places):0{places}d}".rstrip("0")


def without_unit(text: str) -> str:
    """Return an answer without the unit behind it. Example: `without_unit("10\\\\pi \\\\text{ cm}^2") == "10\\\\pi"`."""
    if not _ANGLES.search(text):  # `\\sin 30^\\circ` is not the sine of 30.
        text = _DEGREES.sub("", text)
    unit = _TEXT_UNIT.search(text)
    words = (unit.group(1) or unit.group(2) or "") if unit else ""
    if unit and not _is_scale_or_link(words):
        text = text[: unit.start()]
    elif unit:
        text = f"{text[: unit.start()]} {words.strip()}"
    found = _NUMBER_WITH_UNIT.fullmatch(text)
    if not found:
        return bare(text)
    words = (found["words"] or "").lower().replace(".", " ").split()
    scale = 1
    while words and words[0] in _SCALES:
        scale *= _SCALES[words.pop(0)]
    if words and words[0] in _NOT_UNITS:
        return bare(text)
    value = plain_number(found["value"].strip())
    if scale > 1:
        return decimal(value * scale) if value is not None else bare(text)
    if words[:1] == ["percent"]:
        return f"{found['value']}%"
    return bare(found["value"])


def _is_scale_or_link(words: str) -> bool:
    first = words.split()[:1]
    return bool(first) and (first[0].lower() in _SCALES or first[0].lower() in _NOT_UNITS)
