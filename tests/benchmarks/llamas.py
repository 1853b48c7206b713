"""Random Llamas of a size at which the model, not the service, is the work: one that chats, one that scores."""

from pathlib import Path

from tiny_models import save_tokenizer

MAX_LENGTH = 2048


def save_llama(folder: Path, *, scores: bool, hidden: int, layers: int, seed: int = 0) -> Path:
    """Save a random Llama of 4k vocabulary with a byte tokenizer; `scores` gives it one output in place of words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    save_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=256,
        eos_token_id=258,
        **({"num_labels": 1, "initializer_range": 0.05} if scores else {}),
    )
    (LlamaForSequenceClassification if scores else LlamaForCausalLM)(config).save_pretrained(folder)
    return folder
