"""Rule best: the highest scored answer of all sources becomes an SFT example (arXiv 2412.03187, section 3).

With `only_correct` it is the highest scored of those that a verifier judged correct (arXiv 2503.04222, math and code).
Example: sources a (scores 1, 3) and b (2, 5), where the 5 was cut at the token limit: the row is a's 3; with
`only_correct`, and a's 3 and b's 5 wrong and the others correct, it is b's 2.
Equal best scores are drawn with the seed.
"""

from typing import ClassVar, Literal

from fusion.rows import SftExample
from fusion.select.common import Drop, PromptGroup, Ranked, Reason


class Best(Ranked):
    """The best answer over all sources."""

    row_type: ClassVar[type] = SftExample
    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = True

    type: Literal["best"] = "best"
    side: Literal["sft", "preference", "all"] = "sft"
    """Prompts that it is for: one side of the split, or all."""
    only_correct: bool = False
    """Take only answers that a verifier judged correct."""

    def __call__(self, group: PromptGroup) -> SftExample | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if self.only_correct and not isinstance(answers, Drop):
            answers = self.correct(answers)
        return answers if isinstance(answers, Drop) else SftExample(group.prompt, self.best(answers))
