"""Finds the final answer in a response to a math question, and in the gold text of a data set.

What it gives is the answer as it was written, LaTeX or plain; `notation.py` brings two of them into one spelling and the
verifier compares. Nothing here parses math. Everything is linear in the text, of which only the end is read, because the
text is whatever a model has written.

Conventions, each looked for in the order that the config gives:

- `boxed`: the last `\\boxed{}` or `\\fbox{}` whose braces close. Where one is open and none is closed, there is no answer at
  all: the response was cut in the middle of it.
- `final`: what follows the last `#### `, `answer is`, `answer:`, `**Answer**`, `<answer>` or `答案：`, up to the end of its
  sentence or line.
- `last_number`: the last number of the text; a guess, and off by default.

What a model thinks, up to `</think>`, is no answer, nor is a thought that does not end.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

Convention = Literal["boxed", "final", "last_number"]

READ_CHARS = 100_000
"""Characters at the end of a response that are read."""
ANSWER_CHARS = 1_000
"""Longest answer that is compared. The longest one of the MATH data set has under 200."""
_TRIED_MARKERS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """An answer as written, or the reason why there is none. Example: `Found("\\\\frac{1}{2}")`, `Found("", "no_answer")`."""

    text: str
    reason: str = ""


def find_answer(text: str, conventions: Sequence[Convention]) -> Found:
    """Return the answer of a response by the first convention that finds one.

    Example: `find_answer("So 2+2 = 4. The answer is 4 apples.", ("boxed", "final")) == Found("4 apples")`.
    Reasons: `no_answer`, `unclosed_box`, `answer_too_long`, `odd_characters` (invisible ones, or digits of other scripts).
    """
    text = _end_of(text).rpartition("</think>")[2].partition("<think>")[0]
    box = _last_box(text)
    if box is None and _OPEN_BOX.search(text):
        return Found("", "unclosed_box")
    for convention in conventions:
        match convention:
            case "boxed":
                if box is not None:  # An empty box is an answer that was not given.
                    return _checked(box)
            case "final":
                if answer := _after_marker(text):
                    inside = _last_box(answer)
                    return _checked(answer if inside is None else inside)
            case "last_number":
                if answer := _last_number(text):
                    return _checked(answer)
    return Found("", "no_answer")


def gold_answer(reference: str) -> Found:
    """Return the answer of a gold text: a bare one, a GSM8K solution that ends with `#### 12`, or a MATH solution with a box.

    Example: `gold_answer("3*4 = <<3*4=12>>12\\n#### 12") == Found("12")`.
    """
    reference = _end_of(reference)
    _, mark, after = reference.rpartition("####")
    if mark:
        return _checked(after)
    box = _last_box(reference)
    return _checked(reference if box is None else box)


def _end_of(text: str) -> str:
    text = text.rstrip()
    if len(text) <= READ_CHARS:
        return text
    # A number that the cut goes through would be read as another one.
    tail = text[-READ_CHARS:]
    whole = re.search(r"[^\w.,]", tail)
    return tail[whole.end() :] if whole else ""


def _checked(answer: str) -> Found:
    answer = answer.strip()
    if not answer:
        return Found("", "no_answer")
    if len(answer) > ANSWER_CHARS:
        return Found("", "answer_too_long")
    if any(_is_odd(char) for char in answer):
        return Found("", "odd_characters")
    return Found(answer)


def _is_odd(char: str) -> bool:
    """Control, format (zero width, direction), surrogate, private and unassigned characters, and digits beside 0-9."""
    if char.isascii():
        return char < " " and char not in "\t\n\r"
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Nd")


# ---- boxes ------------------------------------------------------------------------------------

# Two backslashes: text that was escaped once more than it should be.
_OPEN_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|,?\s*\b(?:and|or)\b)[\s$]*(?:[A-Za-z]\s*=\s*)?")
_JOINED_BOXES = 20
_BRACES = re.compile(rf"{_OPEN_BOX.pattern}|\\.|[{{}}]", re.DOTALL)


def _last_box(text: str) -> str | None:
    """Return the content of the last box that closes, None without one; a box within it is unwrapped.

    Boxes with nothing but `and`, `or` or a comma between them are one list: `\\boxed{3}` or `x = \\boxed{-2}` is `3, -2`.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    joined = [boxes[-1]]
    for box in boxes[-2 : -_JOINED_BOXES - 1 : -1]:
        if box.start > joined[0].start:
            continue  # It is inside of that one.
        if not _BETWEEN_BOXES.fullmatch(text, box.end + 1, joined[0].start):
            break
        joined.insert(0, box)
    return ", ".join(_unwrapped(text[box.content : box.end].strip()) for box in joined)


def _unwrapped(content: str) -> str:
    inner = _last_box(content) if len(content) <= ANSWER_CHARS else None
    return content if inner is None else inner


@dataclasses.dataclass(frozen=True, slots=True)
class _Box:
    """Where it starts, where its content does, and where that ends."""

    start: int
    content: int
    end: int


def _boxes(text: str) -> list[_Box]:
    """Return the boxes that close, in the order of their ends."""
    open_braces: list[tuple[int, int] | None] = []
    """Where a box and its content start; None for another brace."""
    boxes = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            starts = open_braces.pop() if open_braces else None
            if starts is not None:
                boxes.append(_Box(*starts, match.start()))
        elif token == "{":
            open_braces.append(None)
        elif "box" in token:
            open_braces.append((match.start(), match.end()))
    return boxes


# ---- what follows a phrase --------------------------------------------------------------------

_MARKER = re.compile(
    r"####[ \t]*[*_]*(?=[-+$€£¥.\\({0-9])"
    r"|####[ \t]*(?=[*_A-Za-z][^\n]*\Z)"
    r"|(?:\banswers?|\bcorrect (?:option|choice))\b(?:[ \t]+(?:to|for|of)\b[^.:\n]{0,80}?)?[*_ \t]*"
    r"(?:\bis\b|\bare\b|\b(?:would|should|must) be\b|[:：=])"
    r"|<answer>"
    r"|\banswer\b[*_ \t]*(?=\$|\\\(|\\\[)"
    r"|^[#*_ \t]*(?:the[ \t]+)?(?:final[ \t]+)?answer[*_ \t]*$"
    r"|答案(?:应?该?[是为选])?[：:]?|(?:答|故选)[：:]",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBERS = re.compile(rf"(?<![\w.])[-+−]?(?:{_NUMBER})(?:/[0-9]+)?[ ]?%?")
_MATH_SPAN = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$((?:\\\$|[^$\n])+?)\$", re.DOTALL)
_LIST_LINK = re.compile(r"\s*(?:,\s*(?:and|or)\b|,|\band\b|\bor\b)\s*(?=\$|\\\(|\\\[)")
_NEGATION = re.compile(r"\bnot\b|n't\b|\bcannot\b|\bneither\b|不是", re.IGNORECASE)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE_END = re.compile(
    r"(?<=[^\s.])[.?;。；](?=\s|\*|$)|[。；]|，(?![0-9\s(-])|,\s+(?!(?:and|or)\b)(?=[a-z]{2,})|\s\((?=[a-z])|</answer>"
    # What explains the answer, or says what it is not.
    r"|(?<=[0-9}%$)A-Za-z])\s+(?:because|since|after|as)\b|\s\((?=[0-9][^()]*[*×=])|(?<=[0-9}%$])\s+of\s+(?:an?|the)\b"
    r"|,?\s+(?:(?:and|but)\s+)?not\s+(?=[-$\\0-9])"
)
_BRACKETED = re.compile(r"(?<=[a-z]\s)[(\[][^()\[\]$]*[0-9][^()\[\]$]*,[^()\[\]$]*[)\]]$")
# What stands before a number and makes another one of it, with or without words between.
_CHANGED = re.compile(
    r"^(?:sqrt|pi|log|ln|sin|cos|tan|exp)\b|^[A-Za-z]+[(^/*+]|^[A-Za-z]+\s[+*/^-]\s"
    r"|\b(?:half|third|quarter|twice|double|triple|thrice|times|root|squared?|cubed?|factorial|logarithm|reciprocal|inverse"
    r"|least|most|than|under|over|below|above|between|up to|modulo|remainder)\b[^0-9]*(?=[-.]?[0-9])",
    re.IGNORECASE,
)


def _after_marker(text: str) -> str:
    """Return what follows the last phrase after which something like math stands, else the last one with words."""
    words = ""
    for end in [match.end() for match in _MARKER.finditer(text)][: -_TRIED_MARKERS - 1 : -1]:
        candidate = _statement(text[end : end + 2 * ANSWER_CHARS])
        if re.search(r"[0-9\\]|^\W*[A-Za-z]\W*$", candidate):
            return candidate
        words = words or candidate
    return words


def _statement(rest: str) -> str:
    """Return what a text that begins right after a phrase states."""
    rest = rest.lstrip(" \t\r\n*_:：`>")
    if spans := _leading_math(rest):
        return spans
    line = rest.split("\n", 1)[0]
    end = _SENTENCE_END.search(line)
    sentence = (line[: end.start()] if end else line).strip(" \t\r*_`")
    if _NEGATION.search(sentence):
        return ""
    if re.match(r"[A-Za-z]{2,}|[\u4e00-\u9fff]", sentence):
        return _single_value(sentence)
    return sentence


def _leading_math(rest: str) -> str:
    """Return the math that a text begins with, several spans joined: `$3$ and $5$.` is `3, 5`."""
    spans, at = [], 0
    while match := _MATH_SPAN.match(rest, at):
        content = next(group for group in match.groups() if group is not None)
        if match.group(4) is not None and _has_prose(content):
            break  # `$5 for one and $7 for two`: dollars, not math.
        if match.group(4) is not None and content != content.rstrip() and content == content.lstrip():
            break  # `$5 + $7`: the same.
        at = match.end()
        percent = re.match(r"\s*\\?%", rest[at:])
        spans.append(content.strip().rstrip(".") + ("%" if percent else ""))
        link = _LIST_LINK.match(rest, at)
        if link is None:
            break
        at = link.end()
    return ", ".join(spans)


def _single_value(sentence: str) -> str:
    """Return the value in `she has 12 apples` or `$x$ is $5$`; with several or none the sentence itself is what was said.

    The sentence as well where the value is not the number in it: `half of 12`, `at least 12`, `sqrt(2)`.
    """
    sentence = re.sub(r"\b(?:negative|minus)\s+(?=[0-9.])", "-", sentence)
    if _CHANGED.search(sentence):
        return sentence
    if pair := _BRACKETED.search(sentence):
        return pair[0]
    spans = [next(group for group in found if group) for found in _MATH_SPAN.findall(sentence)]
    values = [
        span for span in spans if not re.fullmatch(r"\s*[A-Za-z](?:\([a-z]\))?\s*", span) and not _has_prose(span)
    ]
    if len(values) != 1:
        values = [match.group().strip() for match in _NUMBERS.finditer(sentence)]
    return values[0] if len(values) == 1 else sentence


def _has_prose(span: str) -> bool:
    return bool(_PROSE.search(re.sub(r"\\[a-z]+\{[^{}]*\}", "", span)))


def _last_number(text: str) -> str:
    last = ""
    for match in _NUMBERS.finditer(text):
        last = match.group().strip()
    return last
