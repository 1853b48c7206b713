"""Sizes and seed of the demo world; all of them are in its fingerprint."""

from pydantic import Field

from fusion.config import Config


class WorldSettings(Config):
    """What a world is made from. The defaults are the demo's."""

    seed: int = 0
    """Seed of everything: problems, texts, first weights, order of training."""
    source_examples: int = Field(default=36_000, ge=1)
    """Training texts of each source."""
    target_examples: int = Field(default=52_000, ge=1)
    """Training texts of the target's first stage: careful and sloppy writers."""
    sloppy_examples: int = Field(default=2_000, ge=1)
    """Training texts of the target's second stage: sloppy writers only."""
    reward_examples: int = Field(default=16_000, ge=1)
    """Scored answers for the reward model."""
    num_prompts: int = Field(default=1_500, ge=4)
    """Prompts for the pipeline."""
    num_held_out: int = Field(default=320, ge=4)
    """Prompts for evaluation."""
