"""What is taken out of the training prompts of a recipe as a whole, across all its prompt sets.

On by default. Prompts that are nearly the same would be on both sides of a split and count twice; prompts of an
evaluation set would make its numbers worthless. Exact duplicates always go. The held-out prompts of the recipe are an
evaluation set that needs no naming.
"""

from pydantic import Field

from fusion.config import Config
from fusion.promptsets.decontamination import Overlap
from fusion.promptsets.sets import PromptSet


class Decontaminate(Overlap):
    """Evaluation sets that no training prompt may be from."""

    against: tuple[PromptSet, ...] = ()
    """Evaluation sets besides the recipe's held-out prompts; their filters and limits apply."""

    @property
    def rule(self) -> Overlap:
        """The rule without the sets."""
        return Overlap(**self.model_dump(exclude={"against"}))


class Clean(Config):
    """Near duplicates and evaluation prompts are taken out; null leaves either in."""

    near_duplicates: float | None = Field(default=0.85, ge=0.5, le=1)
    """Jaccard similarity of their 5-word shingles from which two prompts count as the same; the first one stays."""
    decontaminate: Decontaminate | None = Decontaminate()
    """What may not be shared with evaluation sets; null compares with the held-out prompts for equality only."""
