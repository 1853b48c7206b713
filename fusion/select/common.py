"""What selection rules share: the group of answers to one prompt, drops, ties and margins.

It decides nothing about which roles a rule fills. The one idea: chance is a hash of (seed, prompt,
purpose, response), so a tie falls the same way whatever the order of the answers, and falls to every
tied answer equally often over prompts. Ties broken by order hand them all to the first source.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from fusion.config import Config
from fusion.rows import Finish, Prompt, ScoredResponse, Verdict


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
    no_correct = "no_correct"
    no_wrong = "no_wrong"
    length_ratio = "length_ratio"
    no_rule = "no_rule"
    source_share = "source_share"
    longer_share = "longer_share"


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

    def correct(self, responses: Sequence[ScoredResponse]) -> tuple[ScoredResponse, ...] | Drop:
        """Return the answers that a verifier judged correct, or the drop where there are none."""
        return tuple(r for r in responses if r.verdict is Verdict.correct) or Drop(
            Reason.no_correct, f"verdicts of {len(responses)} answers: {_verdicts(responses)}"
        )

    def best(self, responses: Iterable[ScoredResponse]) -> ScoredResponse:
        """Return the highest scored answer; a tie is drawn."""
        return self._pick(responses, max, "best")

    def worst(self, responses: Iterable[ScoredResponse]) -> ScoredResponse:
        """Return the lowest scored answer; a tie is drawn, independently of that of `best`."""
        return self._pick(responses, min, "worst")

    def best_first(self, responses: Iterable[ScoredResponse]) -> tuple[ScoredResponse, ...]:
        """Return all answers from the highest score to the lowest; the first is that of `best`."""
        return tuple(sorted(responses, key=lambda r: (-r.score, self.ticket(r, "best"))))

    def worst_first(self, responses: Iterable[ScoredResponse]) -> tuple[ScoredResponse, ...]:
        """Return all answers from the lowest score to the highest; the first is that of `worst`."""
        return tuple(sorted(responses, key=lambda r: (r.score, self.ticket(r, "worst"))))

    def _pick(
        self, responses: Iterable[ScoredResponse], extreme: Callable[[list[float]], float], purpose: str
    ) -> ScoredResponse:
        responses = list(responses)
        score = extreme([r.score for r in responses])
        return min((r for r in responses if r.score == score), key=lambda r: self.ticket(r, purpose))

    def ticket(self, scored: ScoredResponse, purpose: str) -> bytes:
        """Return the lot of an answer in a draw; the smallest wins, and draws for other purposes are independent."""
        response = scored.response
        text = f"{self.seed}\0{response.prompt_id}\0{purpose}\0{response.model}\0{response.sample}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class Paired(Ranked):
    """Fields of every rule that sets a chosen answer against a rejected one."""

    min_margin: float = Field(default=0.0, ge=0)
    """Least chosen score minus rejected score; equal scores are never a pair that scores tell apart."""
    max_margin: float | None = Field(default=None, gt=0)
    """Largest chosen score minus rejected score; null = no limit."""
    contrast: Literal["score", "verdict"] = "score"
    """What tells chosen from rejected. `score`: the highest scored answer against the lowest. `verdict`: the highest scored
    one that a verifier judged correct against the lowest scored one that it judged wrong; without margins their scores
    may then be in any order."""
    unparsable_is_wrong: bool = False
    """With `contrast: verdict`, whether an answer in which the verifier found nothing to check may be the rejected one."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """Guard against learning length: the longer text of a pair may have at most so many times the characters of the
    shorter one; null = no limit."""

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError(f"max_margin {self.max_margin} is below min_margin {self.min_margin}; no pair could pass")
        if self.unparsable_is_wrong and self.contrast != "verdict":
            raise ValueError("unparsable_is_wrong has no effect with contrast: score; leave it out")
        return self

    def sources_and_own_pair(self, group: PromptGroup) -> tuple[tuple[ScoredResponse, ...], Pair] | Drop:
        """Return the source answers that may be chosen and the own pair, or the first drop in this order.

        With `contrast: verdict` a chosen answer is a correct one, whoever gave it.
        """
        source = self.eligible(group.source, Reason.no_source_response)
        if self.contrast == "verdict" and not isinstance(source, Drop):
            source = self.correct(source)
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
        if self.contrast == "score":
            return self.checked(self.best(responses), self.worst(responses))
        correct = self.correct(responses)
        if isinstance(correct, Drop):
            return correct
        wrong = self.rejectable(responses)
        if not wrong:
            return Drop(Reason.no_wrong, f"verdicts of {len(responses)} answers: {_verdicts(responses)}")
        return self.checked(self.best(correct), self.worst(wrong))

    def checked(self, chosen: ScoredResponse, rejected: ScoredResponse) -> Pair | Drop:
        """Return the pair, or the drop where its scores, texts or lengths do not make one."""
        margin = chosen.score - rejected.score
        if margin <= 0 and self.contrast == "score":
            return Drop(Reason.tie, f"all scores are {chosen.score:g}")
        if margin < self.min_margin and (self.contrast == "score" or self.min_margin > 0):
            return Drop(Reason.below_margin, f"margin {margin:.17g} < {self.min_margin:g}")
        if self.max_margin is not None and margin > self.max_margin:
            return Drop(Reason.above_margin, f"margin {margin:.17g} > {self.max_margin:g}")
        if chosen.response.text == rejected.response.text:
            return Drop(Reason.identical_text, f"scores {chosen.score:g} and {rejected.score:g} for one text")
        if self.max_length_ratio is not None:
            short, long = sorted((len(chosen.response.text), len(rejected.response.text)))
            if long > self.max_length_ratio * short:
                return Drop(Reason.length_ratio, f"{long} characters against {short}")
        return chosen, rejected

    def rejectable(self, responses: Sequence[ScoredResponse]) -> tuple[ScoredResponse, ...]:
        """Return the answers that may be rejected: with `contrast: verdict` those that count as wrong, else all."""
        if self.contrast == "score":
            return tuple(responses)
        false = (Verdict.wrong, Verdict.unparsable) if self.unparsable_is_wrong else (Verdict.wrong,)
        return tuple(r for r in responses if r.verdict in false)

    def choosable(self, responses: Sequence[ScoredResponse]) -> tuple[ScoredResponse, ...]:
        """Return the answers that may be chosen: with `contrast: verdict` the correct ones, else all."""
        if self.contrast == "score":
            return tuple(responses)
        return tuple(r for r in responses if r.verdict is Verdict.correct)

    def source_pairs(self, responses: Sequence[ScoredResponse]) -> dict[str, Pair] | Drop:
        """Return the pair of each source that has one within itself, by name; else the drop of the best source.

        Both answers of a pair are of one model, so that they differ in quality and not in the style of two models.
        """
        found = {model: self.extremes(answers) for model, answers in by_source(responses).items()}
        pairs = {model: pair for model, pair in found.items() if not isinstance(pair, Drop)}
        if pairs:
            return pairs
        drop = found[self.best(responses).response.model]
        assert isinstance(drop, Drop)
        return drop


def by_source(responses: Iterable[ScoredResponse]) -> dict[str, tuple[ScoredResponse, ...]]:
    """Return the answers of each model, models in the order of their names."""
    found: dict[str, list[ScoredResponse]] = {}
    for answer in responses:
        found.setdefault(answer.response.model, []).append(answer)
    return {model: tuple(found[model]) for model in sorted(found)}


def _verdicts(responses: Sequence[ScoredResponse]) -> str:
    counts = Counter(str(r.verdict or "none") for r in responses)
    return ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
