"""Prompts that evaluation sets hold: shared runs of words, and short prompts as a whole.

The rule is that of GPT-3 (Brown et al., arXiv 2005.14165, appendix C): a prompt that shares a run of 13 words with an
evaluation row is contaminated, where words are in lower case without punctuation, and runs that more than 10 training
prompts share are ignored, since those are boilerplate ("answer the following question ..."), not leaks. Ours goes
further in three ways: a Chinese, Japanese or Korean character counts as a word; a prompt whose user says what the user of an
evaluation row says is contaminated however short or common that is; and of conversations every message is searched for
runs, and every turn of the user is compared as a whole, where a turn of many training prompts ("go on") is boilerplate too.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator

from pydantic import Field

from fusion.config import Config
from fusion.promptsets.filters import user_text
from fusion.promptsets.tokens import ngrams, spelled, words
from fusion.rows import Prompt


class Overlap(Config):
    """When a prompt counts as taken from an evaluation set."""

    n: int = Field(default=13, ge=2)
    """Words in a row (characters for Chinese, Japanese and Korean) that must not be shared."""
    min_overlap: float = Field(default=0.0, ge=0, le=1)
    """Share of the runs of n words of an evaluation row, or of one of its messages, that a prompt must hold; 0 = one run is
    enough."""
    common: int | None = Field(default=10, ge=1)
    """A run, or a turn of a conversation, that more training prompts than this share is boilerplate and ignored; null
    ignores none."""
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
    """The first run of words of the prompt that the row holds too; the whole prompt or turn where it is spelled the same."""
    overlap: float
    """Share of the row's runs, or of those of one of its messages, that the prompt holds."""


class Evaluations:
    """The evaluation rows that prompts are compared with. Add all rows, then `count` all prompts, then `find` leaks."""

    def __init__(self, rule: Overlap) -> None:
        self._rule = rule
        self._rows: list[EvaluationRow] = []
        """Row of each part: what its user says is one, every message another."""
        self._num_ngrams: list[int] = []
        """Different runs of each part."""
        self._ngrams: dict[str, tuple[int, ...]] = {}
        """Run of words -> numbers of the parts that hold it."""
        self._whole: dict[str, EvaluationRow] = {}
        """Spelling of all that the user says -> the first such row."""
        self._turns: dict[str, EvaluationRow] = {}
        """Spelling of a turn of the user -> the first row that has it."""
        self._used: Counter[str] = Counter()
        self._used_turns: Counter[str] = Counter()

    def add(self, row: EvaluationRow, prompt: Prompt) -> None:
        """Take in a row; its reference is compared only where the rule says so."""
        whole, *messages = _texts(prompt)
        with_reference = [whole, prompt.reference] if prompt.reference and self._rule.references else [whole]
        for texts in (with_reference, *([message] for message in messages)):
            found = {run for text in texts for run in ngrams(words(text), self._rule.n)}
            for run in found:
                self._ngrams[run] = (*self._ngrams.get(run, ()), len(self._rows))
            self._rows.append(row)
            self._num_ngrams.append(len(found))
        self._whole.setdefault(_spelling(whole), row)
        for turn in _turns(prompt):
            self._turns.setdefault(turn, row)

    def count(self, prompts: Iterable[Prompt]) -> None:
        """Count in how many different prompts each run and each turn of the evaluation rows occurs."""
        if self._rule.common is not None and self._turns:
            for prompt in prompts:
                self._used.update(run for run in set(self._runs(prompt)) if run in self._ngrams)
                self._used_turns.update(turn for turn in _turns(prompt) if turn in self._turns)

    def find(self, prompt: Prompt) -> Leak | None:
        """Return the evaluation row that the prompt has most of (of several the first), or None.

        Example: with n = 3, "please say who wrote the old song" and the row "Who wrote the song?" share "who wrote the", which
        is half of the row's two runs.
        """
        if (same := self._whole.get(_spelling(user_text(prompt)))) is not None:
            return Leak(same, user_text(prompt).strip(), 1.0)
        for spelling, turn in _turns(prompt).items():
            if spelling in self._turns and self._counts(self._used_turns[spelling]):
                return Leak(self._turns[spelling], turn.strip(), 1.0)
        held_runs = (run for run in self._runs(prompt) if run in self._ngrams and self._counts(self._used[run]))
        runs = dict.fromkeys(held_runs)
        held = Counter(number for run in runs for number in self._ngrams[run])
        share = {number: found / self._num_ngrams[number] for number, found in held.items()}
        best = min(share, key=lambda number: (-share[number], number), default=None)
        if best is None or share[best] < self._rule.min_overlap:
            return None
        first = next(run for run in runs if best in self._ngrams[run])
        return Leak(self._rows[best], first, share[best])

    def _runs(self, prompt: Prompt) -> Iterator[str]:
        return (run for text in _texts(prompt) for run in ngrams(words(text), self._rule.n))

    def _counts(self, used: int) -> bool:
        return self._rule.common is None or used <= self._rule.common


def _texts(prompt: Prompt) -> list[str]:
    """Return what is searched for runs: all that the user says, then every message by itself."""
    return list(dict.fromkeys((user_text(prompt), *(message.content for message in prompt.messages))))


def _turns(prompt: Prompt) -> dict[str, str]:
    """Return spelling -> text of the user's turns that say anything."""
    turns = (message.content for message in prompt.messages if message.role == "user" and message.content.strip())
    return {_spelling(turn): turn for turn in turns}


def _spelling(text: str) -> str:
    return spelled(text) or text.strip()  # a text of nothing but dots is that text, and not nothing
