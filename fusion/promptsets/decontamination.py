"""Prompts that evaluation sets hold: shared runs of words, and short prompts as a whole.

The rule is that of GPT-3 (Brown et al., arXiv 2005.14165, appendix C): a prompt that shares a run of 13 words with an
evaluation row is contaminated, where words are in lower case without punctuation, and runs that more than 10 training
prompts share are ignored, since those are boilerplate ("answer the following question ..."), not leaks. Ours goes
further in two ways: a Chinese, Japanese or Korean character counts as a word, and a prompt that is spelled like an
evaluation row as a whole is contaminated however short or common it is.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from fusion.config import Config
from fusion.promptsets.tokens import ngrams, spelled, words


class Overlap(Config):
    """When a prompt counts as taken from an evaluation set."""

    n: int = Field(default=13, ge=2)
    """Words in a row (characters for Chinese, Japanese and Korean) that must not be shared."""
    min_overlap: float = Field(default=0.0, ge=0, le=1)
    """Share of an evaluation row's runs of n words that a prompt must hold; 0 = one run is enough."""
    common: int | None = Field(default=10, ge=1)
    """A run that more training prompts than this share is boilerplate and ignored; null ignores none."""
    references: bool = False
    """Whether the reference answers of evaluation rows are compared with the prompts as well."""


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationRow:
    """Where a row of an evaluation set stands."""

    evaluation: str
    """What its set is called."""
    place: str


@dataclasses.dataclass(frozen=True, slots=True)
class Leak:
    """What a prompt has in common with an evaluation row."""

    row: EvaluationRow
    shared: str
    """The first run of words of the prompt that the row holds too; the whole prompt where it is spelled the same."""
    overlap: float
    """Share of the row's runs that the prompt holds."""


class Evaluations:
    """The evaluation rows that prompts are compared with. Add all rows, then `count` all prompts, then `find` leaks."""

    def __init__(self, rule: Overlap) -> None:
        self._rule = rule
        self._rows: list[EvaluationRow] = []
        self._num_ngrams: list[int] = []
        """Different runs of each row."""
        self._ngrams: dict[str, tuple[int, ...]] = {}
        """Run of words -> numbers of the rows that hold it."""
        self._whole: dict[str, int] = {}
        self._used: Counter[str] = Counter()

    def add(self, row: EvaluationRow, text: str, *, reference: str | None = None) -> None:
        """Take in a row; `reference` is compared only where the rule says so."""
        number = len(self._rows)
        texts = [text, reference] if reference is not None and self._rule.references else [text]
        found = {run for one in texts for run in ngrams(words(one), self._rule.n)}
        self._rows.append(row)
        self._num_ngrams.append(len(found))
        for run in found:
            self._ngrams[run] = (*self._ngrams.get(run, ()), number)
        self._whole.setdefault(spelled(text), number)

    def count(self, texts: Iterable[str]) -> None:
        """Count in how many different prompts each run of the evaluation rows occurs."""
        if self._rule.common is not None and self._ngrams:
            for text in texts:
                self._used.update(run for run in set(ngrams(words(text), self._rule.n)) if run in self._ngrams)

    def find(self, text: str) -> Leak | None:
        """Return the evaluation row that the prompt has most of (of several the first), or None.

        Example: with n = 3, "please say who wrote the old song" and the row "Who wrote the song?" share "who wrote the", which
        is half of the row's two runs.
        """
        if (same := self._whole.get(spelled(text))) is not None:
            return Leak(self._rows[same], text.strip(), 1.0)
        runs = dict.fromkeys(run for run in ngrams(words(text), self._rule.n) if self._counts(run))
        held = Counter(number for run in runs for number in self._ngrams[run])
        share = {number: found / self._num_ngrams[number] for number, found in held.items()}
        best = min(share, key=lambda number: (-share[number], number), default=None)
        if best is None or share[best] < self._rule.min_overlap:
            return None
        first = next(run for run in runs if best in self._ngrams[run])
        return Leak(self._rows[best], first, share[best])

    def _counts(self, run: str) -> bool:
        return run in self._ngrams and (self._rule.common is None or self._used[run] <= self._rule.common)
