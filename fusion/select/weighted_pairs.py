"""Rule weighted_pairs: one pair of each source, each with its weight; the data of FusePO (arXiv 2504.06562, 3.2).

    (y_i+, y_i-) = argmax and argmin of the score over the answers of source i,    w_i as in weighted.py

The weight of the pairs is inferred from the abstract ("weighted preferences"). A source without a pair (one answer, a
tie, a gap outside the margins) has none, and the weights are those of the others, so that a prompt counts once. With
`temperature: null` it is plainly all same-source pairs of a prompt; `count: pairs` then makes a prompt weigh as much as
it has pairs, as if each pair were a row of its own.
With `contrast: verdict` R_i is of the source's correct answers.
Example: source a scores 3 and 5, b 4 and 1, c 2, T = 1: (a 5, a 3) with 0.731 and (b 4, b 1) with 0.269; c has no pair.
With `reward: mean` pairs are ranked by the means: of a (5, 0) and b (4, 3) `most: 1` takes (b 4, b 3), 3.5 against 2.5.
"""

from typing import ClassVar, Literal

from fusion.rows import WeightedPairs
from fusion.select.common import Drop, Paired, PromptGroup, Reason, by_source
from fusion.select.weighted import Weighted, softmax


class SourcePairs(Weighted, Paired):
    """The best and the worst answer of each source."""

    row_type: ClassVar[type] = WeightedPairs
    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = True

    type: Literal["weighted_pairs"] = "weighted_pairs"
    side: Literal["sft", "preference", "all"] = "preference"
    """Prompts that it is for: one side of the split, or all."""
    count: Literal["prompts", "pairs"] = "prompts"
    """Weight of the row: 1, or its number of pairs."""

    def __call__(self, group: PromptGroup) -> WeightedPairs | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if isinstance(answers, Drop):
            return answers
        pairs = self.source_pairs(answers)
        if isinstance(pairs, Drop):
            return pairs
        sources = by_source(answers)
        order = {answer.response.row_id: place for place, answer in enumerate(self.best_first(answers))}
        rewards_of = {model: self.reward_of(self.choosable(sources[model])) for model in pairs}
        ranked = sorted(pairs.values(), key=lambda pair: order[pair[0].response.row_id])
        taken = self.by_reward(ranked, lambda pair: rewards_of[pair[0].response.model])[: self.most]
        rewards = [rewards_of[chosen.response.model] for chosen, _ in taken]
        weights = softmax(rewards, self.temperature)
        chosen, rejected = zip(*taken, strict=True)
        weight = float(len(taken)) if self.count == "pairs" else 1.0
        return WeightedPairs(group.prompt, chosen, rejected, weights, weight)
