"""Rule source_pair: the best against the worst answer of all sources, the data of off-policy DPO.

Example: source a scores 3 and 5, source b 1 and 4: the row is (a 5, b 1). With `contrast: verdict`, and b's 4 and a's 3
the only correct ones, it is (b 4, b 1): the best correct answer against the worst wrong one.
`same_source_pair` keeps both answers to one source.
"""

from typing import ClassVar, Literal

from fusion.rows import PreferencePair
from fusion.select.common import Drop, Paired, PromptGroup, Reason


class SourcePair(Paired):
    """The best and the worst answer over all sources."""

    row_type: ClassVar[type] = PreferencePair
    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = True

    type: Literal["source_pair"] = "source_pair"
    side: Literal["sft", "preference", "all"] = "preference"
    """Prompts that it is for: one side of the split, or all."""

    def __call__(self, group: PromptGroup) -> PreferencePair | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if isinstance(answers, Drop):
            return answers
        pair = self.extremes(answers)
        return pair if isinstance(pair, Drop) else PreferencePair(group.prompt, *pair)
