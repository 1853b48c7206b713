"""Which prompts are for SFT and which for the preference stage.

A prompt is on one side only, so the preference stage never trains on answers to prompts that SFT has seen.
The one idea: rank prompts by a hash of (seed, prompt_id) and cut the ranking; counts are exact, and
neither the order of the prompts nor their number of answers matters.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from fusion.config import Config

Side = Literal["sft", "preference"]


class Split(Config):
    """Shares of the prompts. Example: `Split(sft=1, preference=2, seed=42)` gives SFT a third (WRPO)."""

    type: Literal["ratio"] = "ratio"
    sft: int = Field(ge=0)
    """Share for SFT, relative to `preference`."""
    preference: int = Field(ge=0)
    """Share for the preference stage, relative to `sft`."""
    seed: int = Field(ge=0)
    """Seed of the draw."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.sft == self.preference == 0:
            raise ValueError("sft and preference are both 0; give the prompts to at least one side")
        return self

    def gives(self, side: Side) -> bool:
        """Return whether any prompt can be on this side."""
        return (self.sft if side == "sft" else self.preference) > 0

    def assign(self, prompt_ids: Iterable[str]) -> dict[str, Side]:
        """Return the side of each prompt, in the order given; `round(n * sft / (sft + preference))` go to SFT.

        Raises:
            ValueError: a prompt id occurs twice.
        """
        ids = list(prompt_ids)
        if len(set(ids)) < len(ids):
            twice = next(i for n, i in enumerate(ids) if i in ids[:n])
            raise ValueError(f"prompt id {twice!r} occurs twice; a split needs unique ids")
        total = self.sft + self.preference
        num_sft = (2 * len(ids) * self.sft + total) // (2 * total)
        chosen = set(sorted(ids, key=lambda each: rank(self.seed, each))[:num_sft])
        return {i: "sft" if i in chosen else "preference" for i in ids}


def rank(seed: int, prompt_id: str) -> bytes:
    """Return the place of a prompt in the draw of a seed; the smallest come first."""
    return hashlib.sha256(f"{seed}\0{prompt_id}".encode("utf-8", "surrogatepass")).digest()
