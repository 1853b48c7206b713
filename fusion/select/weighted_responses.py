"""Rule weighted_responses: several answers to imitate, each with its weight; the data of FuseSFT (arXiv 2504.06562, 3.1).

    y_i = argmax of the score over the answers of source i,    w_i as in weighted.py          `of: sources`, the paper's formula
    y_1 .. y_k = the k best answers over all sources,          w over these answers           `of: answers`, with `most: k`

A reviewer of the paper describes the second reading (the best four of all sources); where one source gives several of
them, each has the weight of its own score (`reward: max`) or of its source's mean (`reward: mean`).
Example: source a scores 3 and 5, b 4 and 1, T = 1: a's 5 and b's 4 with e / (e + 1) = 0.731 and 0.269; the best three
answers are 5, 4 and 3 with 0.665, 0.245 and 0.090. With `most: 1` it is rule `best` (ties between sources included).
With `reward: mean` sources are ranked by their means as well: of a (5, 0) and b (4, 3) `most: 1` takes b's 4, since b has
3.5 on average and a 2.5.
"""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from fusion.rows import ScoredResponse, WeightedResponses
from fusion.select.common import Drop, PromptGroup, Ranked, Reason, by_source
from fusion.select.weighted import Weighted, softmax


class WeightedAnswers(Weighted, Ranked):
    """The best answer of each source, or the best answers of all."""

    row_type: ClassVar[type] = WeightedResponses
    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = True

    type: Literal["weighted_responses"] = "weighted_responses"
    side: Literal["sft", "preference", "all"] = "sft"
    """Prompts that it is for: one side of the split, or all."""
    of: Literal["sources", "answers"] = "sources"
    """Take the best answer of each source, or the `most` best answers whoever gave them."""
    only_correct: bool = False
    """Take only answers that a verifier judged correct."""

    @model_validator(mode="after")
    def _answers_need_a_number(self) -> Self:
        if self.of == "answers" and self.most is None:
            raise ValueError(
                "of: answers needs most, e.g. most: 4; all answers of all sources are not what FuseRL takes"
            )
        return self

    def __call__(self, group: PromptGroup) -> WeightedResponses | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if self.only_correct and not isinstance(answers, Drop):
            answers = self.correct(answers)
        if isinstance(answers, Drop):
            return answers
        sources = by_source(answers)
        pool = answers if self.of == "answers" else [self.best(own) for own in sources.values()]
        ranked = self.best_first(pool)
        if self.of == "sources":
            ranked = self.by_reward(ranked, lambda answer: self._reward(answer, sources[answer.response.model]))
        taken = tuple(ranked[: self.most])
        weights = softmax([self._reward(answer, sources[answer.response.model]) for answer in taken], self.temperature)
        return WeightedResponses(group.prompt, taken, weights)

    def _reward(self, answer: ScoredResponse, own: tuple[ScoredResponse, ...]) -> float:
        return answer.score if self.reward == "max" else self.reward_of(own)
