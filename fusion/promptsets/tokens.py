"""Words of a text for comparing texts: what counts as the same, without any model's tokenizer.

A token is a run of letters and digits, or one Chinese, Japanese or Korean character, whose words have no spaces between
them; so one n serves all languages. Case and the forms of Unicode are folded. Signs are tokens of their own where
they matter (two equations that differ in one sign are not duplicates) and nothing where they do not (a
quoted sentence is the same with other punctuation).
"""

import re
import unicodedata

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = rf"[{_CJK}]|[^\W_{_CJK}]+"
_WORDS = re.compile(_WORD)
_WORDS_AND_SIGNS = re.compile(rf"{_WORD}|[^\w\s]|_")
_PUNCTUATION = frozenset(".,;:!?\"'()。、“”‘’「」《》…")


def words(text: str) -> list[str]:
    """Return the words of `text`. Example: `words("Don't, 你好!")` is `["don", "t", "你", "好"]`."""
    return _WORDS.findall(folded(text))


def words_and_signs(text: str) -> list[str]:
    """Return the words of `text` and its signs. Example: `words_and_signs("x^2 = 4")` is `["x", "^", "2", "=", "4"]`."""
    return _WORDS_AND_SIGNS.findall(folded(text))


def folded(text: str) -> str:
    """Return `text` with one spelling for what looks the same: full-width letters, ligatures, upper and lower case."""
    return unicodedata.normalize("NFKC", text).casefold()


def ngrams(tokens: list[str], n: int) -> list[str]:
    """Return all runs of `n` tokens as texts, in order; none where there are fewer."""
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def spelled(text: str) -> str:
    """Return what two texts have in common that differ in case, white space and the punctuation of sentences only."""
    return " ".join(token for token in words_and_signs(text) if token not in _PUNCTUATION)
