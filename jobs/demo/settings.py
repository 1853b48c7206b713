"""Sizes and seed of the demo worlds; all of them are in their fingerprints."""

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fusion.config import Config


class WorldSettings(Config):
    """What a world is made from. The defaults are the first demo's; `DOMAIN_SETTINGS` are the second's."""

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
    domains: bool = False
    """False: four skills, each a domain. True: the domains instruction, math and code (`jobs.demo.curriculum`)."""

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `domains` out where it is False, so that the first world keeps the fingerprint that it has always had."""
        plain = dump(self)
        return plain if self.domains else {name: value for name, value in plain.items() if name != "domains"}


DOMAIN_SETTINGS = WorldSettings(domains=True, num_prompts=1_200, source_examples=45_000, target_examples=80_000)
"""The second world. It has six skills instead of four, so its models read more."""
