"""How responses are drawn from a model: decoding parameters and the seed of each single sample."""

import hashlib
from typing import Literal

from pydantic import Field

from fusion.config import Config

Precision = Literal["float32", "bfloat16", "float16"]


class Decoding(Config):
    """One way to decode, with the number of samples drawn that way for each prompt.

    These are the *effective* parameters: nothing is filled in from a model's own generation_config.
    """

    name: str = "sample"
    """Name that the responses carry; evaluation reports per name."""
    num_samples: int = Field(default=1, ge=1, le=1024)
    """Samples per prompt."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass."""
    top_k: int = Field(default=0, ge=0)
    """0 = no limit."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Smallest share of the most likely token's probability that is kept."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=2)
    """1 = none; FuseChat-3.0 uses 1.05 for Qwen."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """OpenAI-style penalty of tokens that occurred."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """OpenAI-style penalty by number of occurrences."""
    max_tokens: int = Field(default=2048, ge=1)
    """Most response tokens; a response that reaches it has finish_reason `length`."""


def sample_seed(stage_seed: int, prompt_id: str, sample: int) -> int:
    """Return the 63-bit seed of one sample: a function of what it is, never of its place in a batch."""
    text = f"{stage_seed}\0{prompt_id}\0{sample}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
