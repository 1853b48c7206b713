"""Brings the answers to a math question into one spelling: `$1{,}234.50 \\text{ dollars}$` and `1234.5` become the same text.

Not a parser: what is math stays as it is, and only its clothes change. What is taken off: dollar signs and delimiters,
`\\left`, thin spaces, thousands separators, fonts, currency, a full stop, and what `units.py` takes off.
"""

import dataclasses
import re
from fractions import Fraction

from fusion.verifiers.units import PERCENT, bare, decimal, plain_number, without_unit

BRACKETS = r"[{}()\[\]]"
"""One of them; a part of every pattern that `cut` is given."""
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys("€£¥₹¢", ""),
        "％": "%",
        "（": "(",
        "）": ")",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "≈": r"\approx ",
        "±": r"\pm ",
        "ℝ": r"\mathbb{R}",
        "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FONTS = r"text(?:rm|bf|it|sf|normal)?|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox"
_SIZES = r"displaystyle|textstyle|limits|large|Large|small|normalsize|bf|rm|it"
_OTHER_BRACKETS = (
    r"(^\s*|(?:\\(?:cup|in)|\bor|\\text\{\s*or\s*\})\s*)([\[\]])((?:(?!\\cup|\\text|\bor\b)[^\[\]])*)([\[\]])"
)


def _usual_brackets(match: re.Match[str]) -> str:
    """Return an interval, whose open ends may have the other bracket as in French, as `(-1, 3]` for `]-1; 3]`."""
    before, opening, bounds, closing = match.groups()
    if not re.search("[,;]", bounds):
        return match[0]
    return f"{before}{'(' if opening == ']' else '['}{bounds.replace(';', ',')}{')' if closing == '[' else ']'}"


# In this order: later ones rely on earlier ones. A backslash after another one ends a row of a matrix.
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[⁰¹²³⁴-⁹⁻]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}"),
        (r"\\\\\s*\[\s*-?[0-9.]+\s*(?:pt|mm|cm|em|ex)\s*\]", r"\\\\ "),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"(?<=[0-9])(?:\{\s*,\s*\}|,\s*\\!)\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?=\s*[\\()\[\]|.{}<>])\.?|(?<!\\)\\!\s*", ""),
        (rf"\\(?:{_SIZES})(?![A-Za-z])\s*|\\(?:text)?color\s*\{{[A-Za-z]*\}}", ""),
        (r"\\underline\s*\{([^{}]*)\}", r"\1"),
        (r"\\([lr])brace(?![A-Za-z])\s*", lambda m: r"\{" if m[1] == "l" else r"\}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\[dtc]frac\b", r"\\frac"),
        (rf"\\(?:{_FONTS})\s*\{{", r"\\text{"),
        (r"\\text\{\s*([ie])\s*\}", r"\1"),
        (r"\\text\{\s*[Aa]nswer:?\s*\}:?", ""),
        (r"\s*\{\s*([,:])\s*\}\s*", r"\1"),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        (r"(?<=[0-9])\s+i$", "i"),
        (r"(?<=[0-9])(?:\\[,;: ]|~)(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad\b", " "),
        (r"(?<!\\)\\\$|\$", ""),
        (r"(?<!\\)\\%", "%"),
        (r"\\(?:varnothing|O)\b", r"\\emptyset"),
        (r"\\sqrt\s*(\[[^\[\]]*\])?\s*([0-9A-Za-z])", r"\\sqrt\1{\2}"),
        (r"\^\s*(\\frac\{[^{}]*\}\{[^{}]*\})", r"^{\1}"),
        (
            r"(?<![\\A-Za-z])(pi|infinity)(?![A-Za-z])|(?<![\\A-Za-z])(sin|cos|tan|ln|log|exp)(?=\s?\(|\s[0-9a-z](?![A-Za-z]))",
            lambda m: rf"\{(m[1] or m[2]).replace('infinity', 'infty')} ",
        ),
        (r"\*\*", "^"),
        (r"\^(-?[0-9]{2,})", r"^{\1}"),
        (r"^\(([0-9A-Za-z]+)\)(?=_)", r"\1"),
        (r"_\{\s*\\text\{\s*([0-9A-Za-z]+)\s*\}\s*\}", r"_{\1}"),
        (r"^([0-9A-Za-z]+) in base ([0-9]+)$", r"\1_{\2}"),
        (_OTHER_BRACKETS, _usual_brackets),
        (r"\s+", " "),
    )
]
_ROOT = re.compile(r"(?:√|(?<![\\A-Za-z])sqrt)\s*")
_RADICAND = re.compile(r"[0-9]+(?:\.[0-9]+)?|[A-Za-z]")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_MIXED = re.compile(r"([-+]?)\s?([0-9]+)\s([0-9]+)\s?/\s?([0-9]+)")
_SCIENTIFIC = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,2})")
_REPEATING = re.compile(r"([-+]?)([0-9]{0,9})\.([0-9]{0,9})\\(?:overline|bar)\s?\{?([0-9]{1,9})\}?")
_TIME = re.compile(r"0?([0-9]{1,2})(:[0-9]{2})?\s*(?:\\text\{\s*)?([aApP])\.?\s?[mM]\.?\s*\}?")
# What has a name and a sign.
_NAMED = [
    (re.compile(r"(?:the set of )?all (?:real numbers|reals)", re.IGNORECASE), r"\mathbb{R}"),
    (re.compile(r"(?:there (?:is|are) )?no solutions?", re.IGNORECASE), r"\emptyset"),
]
# Four letters, or three with another word: shorter ones may be a product of variables.
_WORDS = re.compile(r"(?=.*[A-Za-z]{4}|.*[A-Za-z]{3}.* |.* .*[A-Za-z]{3})[A-Za-z][A-Za-z'’ -]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Spelling:
    """An answer in the one spelling. Example: `spell("12.50\\\\%") == Spelling("12.5", percent=True)`."""

    text: str
    percent: bool = False
    words: bool = False
    """True where it is text and not math: `\\\\text{east}`, `Monday`."""


def spell(answer: str) -> Spelling:
    """Return an answer in the one spelling; its text may be empty. Example: `spell("$1{,}234$").text == "1234"`."""
    text = _roots(bare(answer).translate(_SIGNS))
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = bare(text)
    wrapped = _WHOLE_TEXT.fullmatch(text)
    if wrapped:
        text = bare(wrapped.group(1))
    for name, sign in _NAMED:
        if name.fullmatch(text):
            return Spelling(sign)
    if time := _TIME.fullmatch(text):
        return Spelling(f"{time[1]}{time[2] or ':00'} {time[3].lower()}m")
    text = without_unit(_without_separators(text))
    percent = PERCENT.search(text)
    if percent:
        text = bare(text[: percent.start()])
    if mixed := _MIXED.fullmatch(text):
        text = rf"{mixed[1]}{mixed[2]}\frac{{{mixed[3]}}}{{{mixed[4]}}}"
    elif scientific := _SCIENTIFIC.fullmatch(text):
        text = rf"{scientific[1]} \cdot 10^{{{int(scientific[2])}}}"
    elif repeating := _REPEATING.fullmatch(text):
        text = _repeating(*repeating.groups())
    if (number := plain_number(text)) is not None:
        return Spelling(decimal(number, text), bool(percent))
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    is_words = bool(wrapped and len(text) > 1) or bool(_WORDS.fullmatch(text))
    return Spelling(text, bool(percent), is_words)


def cut(text: str, where: re.Pattern[str]) -> list[str]:
    """Return what stands between the matches outside of brackets; one within them, as `=` in `\\sum_{n=1}`, is none.

    The pattern matches `BRACKETS` too.
    """
    depth, start, parts = 0, 0, []
    for match in where.finditer(text):
        token = match.group()
        if token in "{}()[]":
            depth += (token in "{([") - (token in "})]")
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _roots(text: str) -> str:
    """Return a text with its roots in LaTeX. Example: `(1+√5)/sqrt(x+1)` is `(1+\\sqrt{5})/\\sqrt{x+1}`."""
    # From the last to the first, so that what is inside of another one is done before it.
    for match in reversed(list(_ROOT.finditer(text))):
        rest = text[match.end() :]
        if rest[:1] in ("(", "{"):
            inside, end = rest[1 : (close := _closing(rest))], close + 1
        else:
            radicand = _RADICAND.match(rest)
            inside, end = (radicand[0], radicand.end()) if radicand else ("", 0)
        if inside:
            text = rf"{text[: match.start()]}\sqrt{{{inside}}}{rest[end:]}"
    return text


def _closing(text: str) -> int:
    """Return where the bracket that a text begins with closes, 0 where it does not."""
    depth, close = 0, {"(": ")", "{": "}"}[text[0]]
    for at, char in enumerate(text):
        depth += (char == text[0]) - (char == close)
        if depth == 0:
            return at
    return 0


def _without_separators(text: str) -> str:
    """Return a text without thousands separators, where its commas cannot be those of a list: `1,000x` is `1000x`."""
    if "," not in text or re.search(r"[(\[]|\\\{", text):
        return text
    rest = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return text if "," in rest else rest


def _repeating(sign: str, whole: str, fixed: str, period: str) -> str:
    """Return `0.1\\overline{6}` as a fraction: 15/90."""
    scale = 10 ** len(fixed)
    value = Fraction(int(f"0{whole}{fixed}")) + Fraction(int(period), 10 ** len(period) - 1)
    value /= scale
    return rf"{sign}\frac{{{value.numerator}}}{{{value.denominator}}}"
