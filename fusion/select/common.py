"""What selection rules share: the group of answers to one prompt, drops, ties and margins.

It decides nothing about which roles a rule fills. The one idea: chance is a hash of (seed, prompt,
purpose, response), so a tie falls the same way whatever the order of the answers, and falls to every
tied answer equally often over prompts. Ties broken by order hand them all to the first source.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from fusion.config import Config
from fusion.rows import Finish, Prompt, ScoredResponse


class Reason(StrEnum):
    """Why a prompt gives no row."""

    no_source_response = "no_source_response"
    no_own_response = "no_own_response"
    only_truncated = "only_truncated"
    single_response = "single_response"
    tie = "tie"
    below_margin = "below_margin"
    above_margin = "above_margin"
    identical_text = "identical_text"


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """A prompt that gives no row, with the reason that is counted and details for people."""

    reason: Reason
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptGroup:
    """All scored answers to one prompt."""

    prompt: Prompt
    source: tuple[ScoredResponse, ...] = ()
    """Answers of all source models."""
    own: tuple[ScoredResponse, ...] = ()
    """Answers of the target's own (SFT) model."""


Pair = tuple[ScoredResponse, ScoredResponse]
"""A chosen and a rejected answer."""


class Ranked(Config):
    """Fields of every rule that ranks answers by score."""

    seed: int = Field(default=0, ge=0)
    """Seed of the ties; the recipe's own where it is not given."""
    allow_length: bool = False
    """Whether answers cut at the token limit (finish_reason `length`) may be taken for any role."""

    def eligible(self, responses: Sequence[ScoredResponse], missing: Reason) -> tuple[ScoredResponse, ...] | Drop:
        """Return the answers that may be taken, or the drop where there are none."""
        if not responses:
            return Drop(missing)
        taken = tuple(r for r in responses if self.allow_length or r.response.finish_reason is Finish.stop)
        return taken or Drop(Reason.only_truncated, f"all {len(responses)} answers reached the token limit")

    def best(self, responses: Iterable[ScoredResponse]) -> ScoredResponse:
        """Return the highest scored answer; a tie is drawn."""
        return self._pick(responses, max, "best")

    def worst(self, responses: Iterable[ScoredResponse]) -> ScoredResponse:
        """Return the lowest scored answer; a tie is drawn, independently of that of `best`."""
        return self._pick(responses, min, "worst")

    def best_first(self, responses: Iterable[ScoredResponse]) -> tuple[ScoredResponse, ...]:
        """Return all answers from the highest score to the lowest; the first is that of `best`."""
        return tuple(sorted(responses, key=lambda r: (-r.score, self._ticket(r, "best"))))

    def worst_first(self, responses: Iterable[ScoredResponse]) -> tuple[ScoredResponse, ...]:
        """Return all answers from the lowest score to the highest; the first is that of `worst`."""
        return tuple(sorted(responses, key=lambda r: (r.score, self._ticket(r, "worst"))))

    def _pick(
        self, responses: Iterable[ScoredResponse], extreme: Callable[[list[float]], float], purpose: str
    ) -> ScoredResponse:
        responses = list(responses)
        score = extreme([r.score for r in responses])
        return min((r for r in responses if r.score == score), key=lambda r: self._ticket(r, purpose))

    def _ticket(self, scored: ScoredResponse, purpose: str) -> bytes:
        response = scored.response
        text = f"{self.seed}\0{response.prompt_id}\0{purpose}\0{response.model}\0{response.sample}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Paired(Ranked):
    """Fields of every rule that sets a chosen answer against a rejected one."""

    min_margin: float = Field(default=0.0, ge=0)
    """Least chosen score minus rejected score; equal scores are never a pair."""
    max_margin: float | None = Field(default=None, gt=0)
    """Largest chosen score minus rejected score; null = no limit."""

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError(f"max_margin {self.max_margin} is below min_margin {self.min_margin}; no pair could pass")
        return self

    def sources_and_own_pair(self, group: PromptGroup) -> tuple[tuple[ScoredResponse, ...], Pair] | Drop:
        """Return the source answers that may be taken and the own pair, or the first drop in this order."""
        source = self.eligible(group.source, Reason.no_source_response)
        if isinstance(source, Drop):
            return source
        pair = self.own_pair(group)
        return pair if isinstance(pair, Drop) else (source, pair)

    def own_pair(self, group: PromptGroup) -> Pair | Drop:
        """Return the best and the worst own answer, or the drop where they are no pair."""
        own = self.eligible(group.own, Reason.no_own_response)
        return own if isinstance(own, Drop) else self.extremes(own)

    def extremes(self, responses: Sequence[ScoredResponse]) -> Pair | Drop:
        """Return the best and the worst answer, or the drop where they are no pair."""
        if len(responses) == 1:
            return Drop(Reason.single_response, f"score {responses[0].score:g}")
        return self.checked(self.best(responses), self.worst(responses))

    def checked(self, chosen: ScoredResponse, rejected: ScoredResponse) -> Pair | Drop:
        """Return the pair, or the drop where its scores or texts do not make one."""
        margin = chosen.score - rejected.score
        if margin <= 0:
            return Drop(Reason.tie, f"all scores are {chosen.score:g}")
        if margin < self.min_margin:
            return Drop(Reason.below_margin, f"margin {margin:g} < {self.min_margin:g}")
        if self.max_margin is not None and margin > self.max_margin:
            return Drop(Reason.above_margin, f"margin {margin:g} > {self.max_margin:g}")
        if chosen.response.text == rejected.response.text:
            return Drop(Reason.identical_text, f"scores {chosen.score:g} and {rejected.score:g} for one text")
        return chosen, rejected
