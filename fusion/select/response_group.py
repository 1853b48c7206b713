"""Rule response_group: several answers to one prompt, compared with each other, the data of RLOO.

FuseRL (arXiv 2504.06562) compares all answers of one source; `of: best_source` takes those of the model that gave the
best answer, `sources` those of all sources, and `own` the target's, as in on-policy RLOO. The answers of a row are
ordered from best to worst. Margins are those of the best against the worst: a group whose answers are all scored
alike has no advantage to learn from.
Example: source a scores 3 and 5, source b 1 and 4: the row is (a 5, b 4, a 3, b 1), of `best_source` (a 5, a 3).
"""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from fusion.rows import ResponseGroup
from fusion.select.common import Drop, Paired, PromptGroup, Reason


class Group(Paired):
    """All answers of the sources, of one source, or of the target."""

    row_type: ClassVar[type] = ResponseGroup

    type: Literal["response_group"] = "response_group"
    of: Literal["sources", "best_source", "own"] = "sources"
    """Whose answers are compared: of all sources, of the source that gave the best one, or of the target."""
    side: Literal["sft", "preference", "all"] = "preference"
    """Prompts that it is for: one side of the split, or all; own answers exist on the preference side only."""

    @model_validator(mode="after")
    def _own_answers_exist(self) -> Self:
        if self.needs_own and self.side != "preference":
            raise ValueError(f"of: own needs side: preference, not {self.side}: own answers exist on that side only")
        return self

    @property
    def needs_own(self) -> bool:
        """Whether it reads the target's own answers."""
        return self.of == "own"

    @property
    def needs_sources(self) -> bool:
        """Whether it reads the sources' answers."""
        return self.of != "own"

    def __call__(self, group: PromptGroup) -> ResponseGroup | Drop:
        """Return the row of one prompt, or why there is none."""
        if self.of == "own":
            answers = self.eligible(group.own, Reason.no_own_response)
        else:
            answers = self.eligible(group.source, Reason.no_source_response)
        if isinstance(answers, Drop):
            return answers
        if self.of == "best_source":
            model = self.best(answers).response.model
            answers = tuple(a for a in answers if a.response.model == model)
        pair = self.extremes(answers)
        return pair if isinstance(pair, Drop) else ResponseGroup(group.prompt, self.best_first(answers))
