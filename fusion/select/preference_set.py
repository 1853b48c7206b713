"""Rule preference_set: the rows of WRPO with several source answers (arXiv 2412.03187, sections 3 and 4).

    y_ws = the best answer of each of the best K sources, K = `source_chosen`      -> source_chosen, best first
    y_ls = the worst N source answers, N = `source_rejected`                       -> source_rejected, worst first
    y_wt, y_l = argmax and argmin over the target's own answers                    -> target_chosen, rejected

Fewer sources than K, or fewer answers to avoid than N, give a row with what there is; an answer to avoid scores below
every chosen one and has another text. With K = 1 and N = 0 the rows say what those of `quadruple` say.
Example: sources a (5, 1), b (7), c (2) and own answers 2, 4 and 0, K = 2 and N = 1: (b 7, a 5), (a 1), 4, 0.
"""

from typing import ClassVar, Literal

from pydantic import Field

from fusion.rows import PreferenceSet, ScoredResponse
from fusion.select.common import Drop, Paired, PromptGroup, Reason


class SourceSet(Paired):
    """Best answers of the best sources and worst source answers, with the best and the worst own answer."""

    row_type: ClassVar[type] = PreferenceSet
    needs_own: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    type: Literal["preference_set"] = "preference_set"
    side: Literal["preference"] = "preference"
    """Prompts that it is for: own answers exist on this side only."""
    source_chosen: int = Field(ge=1)
    """Most sources of which the best answer is preferred."""
    source_rejected: int = Field(default=0, ge=0)
    """Most source answers to avoid."""

    def __call__(self, group: PromptGroup) -> PreferenceSet | Drop:
        """Return the row of one prompt, or why there is none."""
        found = self.sources_and_own_pair(group)
        if isinstance(found, Drop):
            return found
        source, (target_chosen, rejected) = found
        models = {a.response.model for a in source}
        best_of_each = [self.best(a for a in source if a.response.model == model) for model in models]
        chosen = self.best_first(best_of_each)[: self.source_chosen]
        pool = self.eligible(group.source, Reason.no_source_response)
        assert not isinstance(pool, Drop)
        return PreferenceSet(group.prompt, chosen, target_chosen, self._to_avoid(pool, chosen), rejected)

    def _to_avoid(
        self, source: tuple[ScoredResponse, ...], chosen: tuple[ScoredResponse, ...]
    ) -> tuple[ScoredResponse, ...]:
        texts = {c.response.text for c in chosen}
        below = [a for a in self.rejectable(source) if a.score < chosen[-1].score and a.response.text not in texts]
        return self.worst_first(below)[: self.source_rejected]
