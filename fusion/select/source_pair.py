"""Rule source_pair: the best against the worst answer of the sources, the data of off-policy DPO.

With `same_source` both answers are of one model, that of the best answer, so that the pair differs in
quality and not in the style of two models (FuseChat-3.0, arXiv 2503.04222).
Example: source a scores 3 and 5, source b 1 and 4: the row is (a 5, b 1); with `same_source` (a 5, a 3).
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
    same_source: bool = False
    """Take the rejected answer from the model that gave the chosen one."""

    def __call__(self, group: PromptGroup) -> PreferencePair | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if isinstance(answers, Drop):
            return answers
        if self.same_source:
            model = self.best(answers).response.model
            answers = tuple(a for a in answers if a.response.model == model)
        pair = self.extremes(answers)
        return pair if isinstance(pair, Drop) else PreferencePair(group.prompt, *pair)
