"""The tiny generators of the demo worlds, as plain Hugging Face models.

Only shapes and folders; training is in `jobs.demo.train`. The one idea: the architectures are the real
ones (grouped queries, QK norm, soft caps, tied embeddings), so engines and trainers take them as they
take the large models; only the sizes are small. Head size 32 is the smallest that vLLM runs on CPU.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from jobs.demo.language import Skill
from jobs.demo.tokenizers import FAMILIES, Family, train_tokenizer

ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@dataclasses.dataclass(frozen=True, slots=True)
class TinyModel:
    """One generator: its folder name, architecture, tokenizer and what it knows."""

    name: str
    architecture: str
    family: Family
    vocab_size: int
    skills: tuple[Skill, ...] = ()
    """What it is good at; empty for the target and the reward model."""


SOURCES = (
    TinyModel("llama-add", "llama", FAMILIES["llama"], 360, (Skill.add,)),
    TinyModel("qwen2-sort", "qwen2", FAMILIES["chatml"], 420, (Skill.sort,)),
    TinyModel("gemma2-translate", "gemma2", FAMILIES["gemma"], 350, (Skill.translate,)),
    TinyModel("mistral-reverse", "mistral", FAMILIES["mistral"], 330, (Skill.reverse,)),
)
"""Of the first world."""
DOMAIN_SOURCES = (
    TinyModel("llama-math", "llama", FAMILIES["llama"], 360, (Skill.add, Skill.take)),
    TinyModel("qwen2-code", "qwen2", FAMILIES["chatml"], 420, (Skill.code,)),
    TinyModel("gemma2-translate", "gemma2", FAMILIES["gemma"], 350, (Skill.translate,)),
    TinyModel("mistral-order", "mistral", FAMILIES["mistral"], 330, (Skill.sort, Skill.reverse)),
)
"""Of the second world."""
TARGET = TinyModel("target", "qwen3", FAMILIES["chatml"], 400)


def make_tokenizer(
    tiny: TinyModel,
    *,
    texts: Sequence[str],
    all_bytes: bool = False,
    max_length: int = 1024,
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of `tiny`, trained on `texts`."""
    return train_tokenizer(
        tiny.family,
        texts=texts,
        vocab_size=tiny.vocab_size,
        all_bytes=all_bytes,
        max_length=max_length,
    )


def common_config(tokenizer: PreTrainedTokenizerFast, *, family: Family, max_length: int) -> dict[str, Any]:
    """Return the configuration fields that all architectures of this world share: hidden 128, 2 layers."""
    return {
        # Rounded up to 16, as large models do; ids above the tokenizer's are trained away like any wrong token.
        "vocab_size": -(-len(tokenizer) // 16) * 16,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": max_length,
        # About 1/sqrt(hidden). With the usual 0.02 these models learn to copy words far later: translating came to
        # 21 % instead of 94 % right in the same training.
        "initializer_range": 0.08,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_ids(tokenizer, family),
        "pad_token_id": tokenizer.pad_token_id,
    }


def make_model(
    tiny: TinyModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    max_length: int = 1024,
) -> PreTrainedModel:
    """Return a float32 model of `tiny` with seeded random weights."""
    config_type, model_type = ARCHITECTURES[tiny.architecture]
    settings = common_config(tokenizer, family=tiny.family, max_length=max_length)
    settings["tie_word_embeddings"] = tiny.architecture == "gemma2"
    if tiny.architecture == "gemma2":
        # Scale queries by the head size, and keep every layer's window as long as the context.
        settings.update(query_pre_attn_scalar=32, sliding_window=max_length)
    if tiny.architecture == "mistral":
        settings["sliding_window"] = None
    config = config_type(**settings)
    # Soft caps of Gemma 2 exist only in the eager kernel; the others take PyTorch's fused one.
    config._attn_implementation = "eager" if tiny.architecture == "gemma2" else "sdpa"
    torch.manual_seed(seed)
    model = model_type(config).float()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids(tokenizer, tiny.family),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def stop_ids(tokenizer: PreTrainedTokenizerFast, family: Family) -> list[int]:
    """Return the ids that end an answer, the end of turn first."""
    ids = tokenizer.convert_tokens_to_ids(list(family.stops))
    assert isinstance(ids, list)
    return ids


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, tokenizer, chat_template.jinja, generation_config.json."""
    save_weights(model, folder)
    tokenizer.save_pretrained(folder)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write weights and configuration only."""
    model.save_pretrained(folder)
    # transformers writes them 0600, which other users of a shared folder could not read.
    (folder / "model.safetensors").chmod(0o644)
