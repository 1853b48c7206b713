"""Which languages a text is in: by its script where that decides, else by py3langid.

The one idea: a text may be in two languages (a Chinese request to translate an English sentence) or in none that can be
told (a formula, three words), so the answer is a set, and an empty one means undecided.
"""

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MIN_LETTERS = 20
"""Letters below which the Latin script alone says nothing of the language."""

ENOUGH_CJK = 0.5
"""Share of Chinese, Japanese and Korean characters among all words that makes a text one of these languages alone."""

SOME_CJK = 0.2
"""Share from which it is one of them besides the language of the rest."""

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_KANA = "\u3040-\u30ff"
_HANGUL = "\uac00-\ud7af\u1100-\u11ff"
_CJK = re.compile(rf"[{_HAN}{_KANA}{_HANGUL}]")
_WORD = re.compile(rf"{_CJK.pattern}|[^\W\d_{_HAN}{_KANA}{_HANGUL}]+")
_CHINESE = {"wuu": "zh", "yue": "zh", "zh": "zh"}
"""Written in the same script; a short Chinese sentence is often taken for another of them."""


def languages_of(text: str, *, min_confidence: float) -> frozenset[str]:
    """Return the ISO 639 codes of the languages of `text`; none where it cannot be told.

    One Chinese character counts as much as one word of letters. Example: `languages_of("翻译成中文：good morning", ...)` has
    `zh`, and `languages_of("2 + 2 = ?", ...)` has none.
    """
    words = _WORD.findall(text)
    if not words:
        return frozenset()
    cjk = [word for word in words if _CJK.match(word)]
    share = len(cjk) / len(words)
    found: set[str] = {_of_script(cjk)} if share >= SOME_CJK else set()
    if share < ENOUGH_CJK:
        found |= _of_letters(_CJK.sub(" ", text), min_confidence)
    return frozenset(found)


def known_languages() -> frozenset[str]:
    """Return every code that `languages_of` can give."""
    return frozenset(_CHINESE.get(code, str(code)) for code in _identifier().labels)


def _of_script(cjk: list[str]) -> str:
    text = "".join(cjk)
    kana, hangul = len(re.findall(f"[{_KANA}]", text)), len(re.findall(f"[{_HANGUL}]", text))
    if hangul > len(text) / 2:
        return "ko"
    # Japanese never does without kana for long; Chinese quotes a few at most.
    return "ja" if kana > len(text) / 10 else "zh"


def _of_letters(text: str, min_confidence: float) -> set[str]:
    latin = len(re.findall("[A-Za-z\u00c0-\u024f]", text))
    letters = len(re.findall(r"[^\W\d_]", text))
    if latin == letters and letters < MIN_LETTERS:
        return set()
    code, confidence = _identifier().classify(text)
    return {_CHINESE.get(code, str(code))} if confidence >= min_confidence else set()


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, and planning does not need it

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
