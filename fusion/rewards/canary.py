"""A canary: one prompt with a better and a worse answer, as a person sees them.

A reward model that is loaded wrongly (another template, another head, a flipped sign) still gives numbers. The
order of two known answers is the cheapest thing that tells.
"""

from typing import Self

from pydantic import Field, model_validator

from fusion.config import Config


class Canary(Config):
    """A pair of answers whose order is known."""

    prompt: str = Field(min_length=1)
    """What was asked."""
    better: str = Field(min_length=1)
    """The answer that must have the higher score."""
    worse: str = Field(min_length=1)
    """The answer that must have the lower score."""

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        if self.better == self.worse:
            raise ValueError("better and worse are the same answer; give two whose order is known")
        return self
