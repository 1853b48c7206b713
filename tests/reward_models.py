"""Tiny random reward models with a byte-level tokenizer and a ChatML template, for tests."""

from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_NEWLINE = TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")


def save_tokenizer(folder: Path, *, template: str = TEMPLATE, pad: str | None = "<|endoftext|>"):
    """Write a tokenizer whose ids 256-258 are <|endoftext|>, <|im_start|> and <|im_end|>; return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def make_reward_model(
    folder: Path,
    *,
    architecture: str = "Llama",
    template: str = TEMPLATE,
    pad_token_id: int | None = 256,
    num_labels: int = 1,
    max_length: int = 512,
    seed: int = 0,
    **fields,
) -> Path:
    """Save a random `<architecture>ForSequenceClassification` and its tokenizer; scores spread over some units."""
    import torch
    import transformers

    save_tokenizer(folder, template=template)
    config = getattr(transformers, f"{architecture}Config")(
        **{
            "vocab_size": 272, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": max_length,
            "initializer_range": 0.1, "eos_token_id": 258, "pad_token_id": pad_token_id, "num_labels": num_labels,
            "tie_word_embeddings": False, **fields,
        }
    )  # fmt: skip
    torch.manual_seed(seed)
    getattr(transformers, f"{architecture}ForSequenceClassification")(config).save_pretrained(folder)
    return folder
