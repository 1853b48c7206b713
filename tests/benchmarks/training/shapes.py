"""Models and rows of the benchmark: random weights, random tokens, fixed seeds.

The one idea: a shape says everything that the cost of a step depends on. Lengths are either equal for all rows
or lognormal; a lognormal shape has several batches, so that one lucky draw does not decide, and a repetition
runs them all.

Units: lengths in tokens, `rows` in prompts per optimizer step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

PAD_ID = 0
"""Never drawn as a token."""

SEED = 0
WRPO_ROLES = ("source_chosen", "target_chosen", "rejected")
SFT_ROLES = ("response",)

Task = Literal["wrpo", "sft"]

Lengths = tuple[int, tuple[int, ...]]
"""Tokens of a prompt and of each of its responses."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt and its responses. Example: prompt_ids [5, 6], responses {"response": [7, 2]}."""

    prompt_ids: np.ndarray
    responses: Mapping[str, np.ndarray]
    """role -> (tokens of the response,) int64, in the order of the task's roles."""

    @property
    def lengths(self) -> Lengths:
        """Tokens of the prompt and of each response."""
        return len(self.prompt_ids), tuple(len(ids) for ids in self.responses.values())

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, the prompt counted once per response."""
        prompt, responses = self.lengths
        return prompt * len(responses) + sum(responses)


Batch = tuple[Row, ...]
"""The rows of one optimizer step."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama with untied embeddings."""

    hidden: int
    layers: int
    intermediate: int
    vocab: int
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def config(self, max_length: int) -> Any:
        """Return the `transformers.LlamaConfig` of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=max_length,
            tie_word_embeddings=False,
            use_cache=False,
            pad_token_id=PAD_ID,
            bos_token_id=None,
            eos_token_id=None,
        )


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Every prompt and every response has the same length."""

    prompt: int
    response: int

    def draw(self, generator: np.random.Generator, *, rows: int, num_responses: int, max_length: int) -> list[Lengths]:
        """Return the lengths of `rows` rows."""
        return [(self.prompt, (self.response,) * num_responses)] * rows

    def scaled(self, factor: float) -> Fixed:
        """Return the lengths times `factor`."""
        return Fixed(round(self.prompt * factor), round(self.response * factor))

    def __str__(self) -> str:
        return f"{self.prompt}:{self.response}"


@dataclasses.dataclass(frozen=True)
class Lognormal:
    """Lengths are the quantiles of lognormal distributions, shuffled; a response ends where `max_length` does.

    Quantiles and not draws: a dozen draws say more about the seed than about the distribution.
    """

    prompt_median: float
    prompt_sigma: float
    response_median: float
    response_sigma: float

    def draw(self, generator: np.random.Generator, *, rows: int, num_responses: int, max_length: int) -> list[Lengths]:
        """Return the lengths of `rows` rows."""
        prompts = _shuffled(_quantiles(self.prompt_median, self.prompt_sigma, rows), generator)
        count = rows * num_responses
        responses = _shuffled(_quantiles(self.response_median, self.response_sigma, count), generator)
        return [
            (prompt, tuple(min(length, max_length - prompt) for length in responses[i::rows]))
            for i, prompt in enumerate(min(prompt, max_length // 2) for prompt in prompts)
        ]

    def scaled(self, factor: float) -> Lognormal:
        """Return the distribution with medians times `factor`."""
        return dataclasses.replace(
            self, prompt_median=self.prompt_median * factor, response_median=self.response_median * factor
        )

    def __str__(self) -> str:
        return (
            f"lognormal, prompt {self.prompt_median:g} (sigma {self.prompt_sigma:g}), "
            f"response {self.response_median:g} (sigma {self.response_sigma:g})"
        )


def _quantiles(median: float, sigma: float, count: int) -> list[int]:
    normal = NormalDist()
    return [max(1, round(median * math.exp(sigma * normal.inv_cdf((i + 0.5) / count)))) for i in range(count)]


def _shuffled(values: list[int], generator: np.random.Generator) -> list[int]:
    # By sorting raw uniforms: NumPy guarantees the stream of `random`, not that of `permutation`.
    return [values[i] for i in np.argsort(generator.random(len(values)), kind="stable")]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One line of the comparison."""

    name: str
    task: Task
    model: ModelShape
    lengths: Fixed | Lognormal
    rows: int
    num_batches: int = 1
    """Optimizer steps that make one repetition, each with rows of its own."""
    max_length: int = 2048
    cuda_only: bool = False
    share_weights: bool = False
    """All contenders step the same weights with learning rate 0, for models of which one copy fits only."""

    @property
    def roles(self) -> tuple[str, ...]:
        return WRPO_ROLES if self.task == "wrpo" else SFT_ROLES

    def quick(self) -> Shape:
        """Return a shape of a few seconds: quarter lengths, one batch, 2 rows (9 for SFT, so that batches of 8 are two)."""
        return dataclasses.replace(
            self, lengths=self.lengths.scaled(0.25), rows=2 if self.task == "wrpo" else 9, num_batches=1
        )

    def batches(self) -> tuple[Batch, ...]:
        """Return `num_batches` batches of `rows` rows; equal calls return equal rows."""
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED])))
        lengths = self.lengths.draw(
            generator, rows=self.rows * self.num_batches, num_responses=len(self.roles), max_length=self.max_length
        )
        rows = [
            Row(
                self._tokens(generator, prompt),
                {role: self._tokens(generator, length) for role, length in zip(self.roles, responses, strict=True)},
            )
            for prompt, responses in lengths
        ]
        return tuple(tuple(rows[i * self.rows : (i + 1) * self.rows]) for i in range(self.num_batches))

    def _tokens(self, generator: np.random.Generator, length: int) -> np.ndarray:
        return 1 + (generator.random(length) * (self.model.vocab - 1)).astype(np.int64)


SMALL = ModelShape(hidden=512, layers=4, intermediate=1408, vocab=4096, heads=8, kv_heads=8)
WIDE_VOCAB = dataclasses.replace(SMALL, vocab=32_000)
DEEP = ModelShape(hidden=256, layers=6, intermediate=704, vocab=128_000, heads=4, kv_heads=4)
LLAMA3_8B = ModelShape(hidden=4096, layers=32, intermediate=14_336, vocab=128_256, heads=32, kv_heads=8)

# The sigmas put the FLOP limit of 12 such rows in batches of 4 at 2.39x (see `flops`).
ULTRAFEEDBACK = Lognormal(prompt_median=120, prompt_sigma=0.7, response_median=220, response_sigma=0.38)

# Questions of mixed domains with their reference answers: medians and spreads (standard deviations of the logarithm) over
# 1,582 of GSM8K, MBPP and AlignBench, in tokens at 4 characters each, 1.6 for Chinese.
MIXED_DOMAINS = Lognormal(prompt_median=48, prompt_sigma=0.64, response_median=59, response_sigma=1.10)

# Rows per step: about as many as give the peak memory of the released layout that others have measured for these shapes
# (1.1 to 2.4 GiB at 4k, 3 GiB at 32k, 8.3 GiB at 128k); the ratios hardly depend on it where all lengths are equal.
SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("4k-64:512", "wrpo", SMALL, Fixed(64, 512), rows=3),
        Shape("4k-256:256", "wrpo", SMALL, Fixed(256, 256), rows=3),
        Shape("4k-512:128", "wrpo", SMALL, Fixed(512, 128), rows=3),
        Shape("4k-1024:128", "wrpo", SMALL, Fixed(1024, 128), rows=3),
        Shape("4k-ultrafeedback", "wrpo", SMALL, ULTRAFEEDBACK, rows=4, num_batches=3),
        Shape("32k-256:256", "wrpo", WIDE_VOCAB, Fixed(256, 256), rows=2),
        Shape("32k-512:128", "wrpo", WIDE_VOCAB, Fixed(512, 128), rows=2),
        Shape("128k-256:256", "wrpo", DEEP, Fixed(256, 256), rows=2),
        Shape("128k-512:128", "wrpo", DEEP, Fixed(512, 128), rows=2),
        Shape("sft-ultrafeedback", "sft", SMALL, ULTRAFEEDBACK, rows=16),
        Shape("sft-mixed", "sft", SMALL, MIXED_DOMAINS, rows=32, num_batches=3),
        Shape("sft-ultrafeedback-32k", "sft", WIDE_VOCAB, ULTRAFEEDBACK, rows=16),
        Shape("sft-mixed-32k", "sft", WIDE_VOCAB, MIXED_DOMAINS, rows=32, num_batches=3),
        Shape(
            "llama3-8b", "wrpo", LLAMA3_8B, ULTRAFEEDBACK, rows=4, num_batches=3, cuda_only=True, share_weights=True
        ),
        Shape("llama3-8b-sft", "sft", LLAMA3_8B, ULTRAFEEDBACK, rows=16, cuda_only=True, share_weights=True),
    )
}  # fmt: skip
