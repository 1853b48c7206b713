"""Random causal language models of the families that training knows, small enough for arithmetic in tests."""

from collections.abc import Callable

import numpy as np
import torch
import transformers

from fusion.train.encode import EncodedRow

VOCABULARY = 96

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
_HEADS = {**_SIZES, "head_dim": 32}
_EXPERTS = {**_HEADS, "num_experts_per_tok": 2}
WINDOW = 6

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_HEADS),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**_HEADS),
    "gemma2": lambda: transformers.Gemma2Config(
        **_HEADS,
        sliding_window=WINDOW,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=3.0,
        query_pre_attn_scalar=32,
    ),
    "mistral": lambda: transformers.MistralConfig(**_HEADS, sliding_window=WINDOW),
    "phi3": lambda: transformers.Phi3Config(**_SIZES),
    "granite": lambda: transformers.GraniteConfig(**_SIZES, logits_scaling=4.0),
    "cohere": lambda: transformers.CohereConfig(**_SIZES, logit_scale=0.3),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_EXPERTS, num_experts=4, moe_intermediate_size=48),
    "mixtral": lambda: transformers.MixtralConfig(**_EXPERTS, num_local_experts=4),
}
"""The first six are those that prefix sharing promises; Granite and Cohere do something to their logits; the last two
route each token to two of four experts."""

PROMISED = ("llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3")
EXPERTS = ("qwen3_moe", "mixtral")


def make(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> transformers.PreTrainedModel:
    """A model of the family in train mode; its attention is what transformers would take for plain passes."""
    torch.manual_seed(seed)
    # PyTorch's grouped product of experts, the default, has no float64.
    experts = {"experts_implementation": "eager"} if dtype is torch.float64 else {}
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), **experts).to(dtype).train()


def random_ids(generator: np.random.Generator, length: int) -> np.ndarray:
    return generator.integers(3, VOCABULARY, length)


def random_rows(*, sizes: list[tuple[int, tuple[int, ...]]], seed: int = 0) -> list[EncodedRow]:
    """Rows with the role `responses`: per row, the tokens of its prompt and of each response."""
    generator = np.random.default_rng(seed)
    return [
        EncodedRow(
            f"row {number}",
            1.0,
            random_ids(generator, prompt),
            {"responses": tuple(random_ids(generator, length) for length in lengths)},
            {"responses": tuple(generator.normal(size=len(lengths)).tolist())},
        )
        for number, (prompt, lengths) in enumerate(sizes)
    ]


def plain_logp(model: transformers.PreTrainedModel, prompt_ids: np.ndarray, response_ids: np.ndarray) -> torch.Tensor:
    """log pi(response | prompt) by the model's own forward of this one sequence: all logits, log-softmax, gather."""
    ids_T = torch.from_numpy(np.concatenate([prompt_ids, response_ids]))
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
    start = len(prompt_ids)
    return torch.log_softmax(logits_TV, -1)[start - 1 : -1].gather(-1, ids_T[start:, None]).sum()
