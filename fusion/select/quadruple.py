"""Rule quadruple: the rows of WRPO, (x, y_ws, y_wt, y_l) of arXiv 2412.03187, section 3.

    y_ws = argmax of the score over all answers of all sources      -> source_chosen
    y_wt, y_l = argmax and argmin over the target's own answers     -> target_chosen, rejected

Example: sources score 5 and 7, own answers 2, 4 and 1: the row is (7, 4, 1) and its margin 4 - 1 = 3.
With `source_rank: 2` y_ws is the second best source answer, here the 5, an ablation of the paper (table 9).
Margins are those of the own pair; the paper does not compare the source answer with it, and neither is done here.
"""

from typing import ClassVar, Literal

from fusion.config import later_field
from fusion.rows import PreferenceQuadruple
from fusion.select.common import Drop, Paired, PromptGroup, Reason


class Quadruple(Paired):
    """The best source answer with the best and the worst own answer."""

    row_type: ClassVar[type] = PreferenceQuadruple
    needs_own: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    type: Literal["quadruple"] = "quadruple"
    side: Literal["preference"] = "preference"
    """Prompts that it is for: own answers exist on this side only."""
    source_rank: int = later_field(1, ge=1)
    """Place of the source answer among all answers of all sources, best first; a prompt with fewer gives no row."""

    def __call__(self, group: PromptGroup) -> PreferenceQuadruple | Drop:
        """Return the row of one prompt, or why there is none."""
        found = self.sources_and_own_pair(group)
        if isinstance(found, Drop):
            return found
        source, (target_chosen, rejected) = found
        if len(source) < self.source_rank:
            return Drop(
                Reason.no_source_response,
                f"source answers: {len(source)}; asked for is the one of rank {self.source_rank}",
            )
        chosen = self.best_first(source)[self.source_rank - 1]
        return PreferenceQuadruple(group.prompt, chosen, target_chosen, rejected)
