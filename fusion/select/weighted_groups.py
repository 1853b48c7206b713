"""Rule weighted_groups: all answers of each source, each source with its weight; FusePO with RLOO (arXiv 2504.06562, 3.2).

    Y_i = the answers of source i,    w_i as in weighted.py

The second stage uses whole sets of answers (reviewers 2 and 4). A source needs two answers or more that are not all
scored alike, and whose best and worst are a pair by the margins; the weights are those of the sources that have, with
`contrast: verdict` by their correct answers (what is compared within a group are scores all the same). The answers of a group are ordered from best to worst, and groups by their best answer.
Example: source a scores 3 and 5, b 4 and 1, c 2, T = 1: groups (a 5, a 3) with 0.731 and (b 4, b 1) with 0.269.
With `reward: mean` groups are ranked by the means: of a (5, 0) and b (4, 3) `most: 1` takes (b 4, b 3), 3.5 against 2.5.
"""

from typing import ClassVar, Literal

from fusion.rows import WeightedGroups
from fusion.select.common import Drop, Paired, PromptGroup, Reason, by_source
from fusion.select.weighted import Weighted, softmax


class SourceGroups(Weighted, Paired):
    """All answers of each source."""

    row_type: ClassVar[type] = WeightedGroups
    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = True

    type: Literal["weighted_groups"] = "weighted_groups"
    side: Literal["sft", "preference", "all"] = "preference"
    """Prompts that it is for: one side of the split, or all."""

    def __call__(self, group: PromptGroup) -> WeightedGroups | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if isinstance(answers, Drop):
            return answers
        pairs = self.source_pairs(answers)
        if isinstance(pairs, Drop):
            return pairs
        found = by_source(answers)
        sources = {model: found[model] for model in pairs if len({answer.score for answer in found[model]}) > 1}
        if not sources:
            return Drop(Reason.tie, "every source's answers are scored alike")
        order = {answer.response.row_id: place for place, answer in enumerate(self.best_first(answers))}
        groups = [tuple(sorted(own, key=lambda answer: order[answer.response.row_id])) for own in sources.values()]
        ranked = sorted(groups, key=lambda own: order[own[0].response.row_id])
        taken = self.by_reward(ranked, lambda own: self.reward_of(self.choosable(own)))[: self.most]
        return WeightedGroups(
            group.prompt,
            responses=tuple(answer for own in taken for answer in own),
            groups=tuple(number for number, own in enumerate(taken) for _ in own),
            weights=softmax([self.reward_of(self.choosable(own)) for own in taken], self.temperature),
        )
