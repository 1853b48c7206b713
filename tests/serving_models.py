"""Tiny random models for serving tests: a chat model and a reward model that share a byte-level tokenizer."""

from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_LENGTH = 512


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of 256 bytes and three special tokens, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_chat_model(folder: Path, *, seed: int = 0) -> Path:
    """Save a random Qwen3 whose greedy answers do not repeat one byte; head_dim 32 is the least that vLLM runs on CPUs."""
    import torch
    from transformers import Qwen3ForCausalLM

    save_tokenizer(folder)
    torch.manual_seed(seed)
    Qwen3ForCausalLM(_config(initializer_range=0.4)).save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, *, seed: int = 1) -> Path:
    """Save a random Qwen3 with one output."""
    import torch
    from transformers import Qwen3ForSequenceClassification

    save_tokenizer(folder)
    torch.manual_seed(seed)
    Qwen3ForSequenceClassification(_config(num_labels=1, initializer_range=0.1)).save_pretrained(folder)
    return folder


def _config(**fields):
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        eos_token_id=258,
        pad_token_id=256,
        tie_word_embeddings=False,
        **fields,
    )
