"""Tiny random ArmoRM folders, as the published one is laid out: weights by their names, Llama 3's tokens and template."""

import itertools
import json
from pathlib import Path

from tiny_models import save_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OPEN_TEMPLATE = TEMPLATE.replace("{% if add_generation_prompt %}", "{% if true %}")
"""Llama 3's first one: it ends with an open assistant turn, whatever it is asked for."""
SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[PAD]")
PAD = 261
VOCABULARY = 272
MAX_LENGTH = 512


def save_armorm(
    folder: Path,
    *,
    template: str = TEMPLATE,
    specials: tuple[str, ...] = SPECIALS,
    num_objectives: int = 19,
    max_length: int = MAX_LENGTH,
    dtype: str = "float32",
    seed: int = 0,
    **fields,
) -> Path:
    """Save config, random weights and tokenizer; gates are far from even, and scores spread over some units.

    The output layers are float32 in the file whatever `dtype` the trunk has, as in the published one.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaModel

    tokenizer = save_tokenizer(folder, template=template, specials=specials, eos="<|end_of_text|>", pad="[PAD]")
    tokenizer.bos_token = "<|begin_of_text|>"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=max_length, bos_token_id=256, eos_token_id=257, pad_token_id=PAD,
        tie_word_embeddings=False, initializer_range=0.1, num_labels=1, architectures=["LlamaForRewardModelWithGating"],
    )  # fmt: skip
    torch.manual_seed(seed)
    weights = {f"model.{name}": w.to(getattr(torch, dtype)) for name, w in LlamaModel(config).state_dict().items()}
    facts = {"num_objectives": num_objectives, "gating_temperature": 10, "gating_hidden_dim": 48, "gating_n_hidden": 3}
    facts |= fields
    sizes = [64, *[facts["gating_hidden_dim"]] * facts["gating_n_hidden"], num_objectives]
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        spread = 20 if outer == num_objectives else 1.5
        weights[f"gating.layers.{number}.weight"] = torch.randn(outer, inner) * spread * inner**-0.5
        weights[f"gating.layers.{number}.bias"] = torch.randn(outer) * 0.3
    weights["gating.logit_scale"] = torch.tensor([1.3])
    weights["regression_layer.weight"] = torch.randn(num_objectives, 64) * 0.2
    transform = torch.eye(num_objectives)
    transform[min(4, num_objectives - 1)] -= torch.rand(num_objectives) * 0.9  # what verbosity takes off the others
    weights["reward_transform_matrix"] = transform
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    # As published: remote code that is never run, and no names of objectives.
    facts["auto_map"] = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    (folder / "modeling_custom.py").write_text("raise SystemExit('remote code was run')\n")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **facts}))
    return folder
