"""Rule on_policy_pair: the best against the worst of the target's own answers, the data of on-policy DPO.

WRPO with alpha = 0 trains on the same two answers (arXiv 2412.03187, eq. of the objective).
Example: own answers score 2, 4 and 1: the row is (4, 1).
"""

from typing import ClassVar, Literal

from fusion.rows import PreferencePair
from fusion.select.common import Drop, Paired, PromptGroup


class OnPolicyPair(Paired):
    """The best and the worst own answer."""

    row_type: ClassVar[type] = PreferencePair
    needs_own: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = False

    type: Literal["on_policy_pair"] = "on_policy_pair"
    side: Literal["preference"] = "preference"
    """Prompts that it is for: own answers exist on this side only."""

    def __call__(self, group: PromptGroup) -> PreferencePair | Drop:
        """Return the row of one prompt, or why there is none."""
        pair = self.own_pair(group)
        return pair if isinstance(pair, Drop) else PreferencePair(group.prompt, *pair)
