"""Tiny random models with a byte-level tokenizer and a ChatML template: a chat model and reward models."""

from collections.abc import Sequence
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_NEWLINE = TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")
MAX_LENGTH = 512
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save_tokenizer(
    folder: Path,
    *,
    template: str = TEMPLATE,
    specials: Sequence[str] = SPECIALS,
    eos: str = "<|im_end|>",
    pad: str | None = "<|endoftext|>",
):
    """Write a tokenizer whose ids 0-255 are bytes and whose next ids are `specials`; return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def save_chat_model(
    folder: Path,
    *,
    hidden_size: int = 64,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    initializer_range: float = 0.02,
    stops: bool = True,
) -> Path:
    """Save a random Qwen3 and its tokenizer; with a range of 0.4 its greedy answers do not repeat one byte.

    `stops=False` makes the end of an answer improbable (about 1e-4 per token with that range), also where it is sampled:
    special tokens, and ids without one, have zeros for an embedding, which is the output layer too.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    save_tokenizer(folder)
    torch.manual_seed(seed)
    config = Qwen3Config(
        **_sizes(hidden_size, max_length),
        pad_token_id=256,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
    )
    model = Qwen3ForCausalLM(config)
    if not stops:
        with torch.no_grad():
            model.get_input_embeddings().weight[256:] = 0
    model.save_pretrained(folder)
    return folder


def save_reward_model(
    folder: Path,
    *,
    architecture: str = "Llama",
    template: str = TEMPLATE,
    pad_token_id: int | None = 256,
    num_labels: int = 1,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
    **fields,
) -> Path:
    """Save a random `<architecture>ForSequenceClassification` and its tokenizer; scores spread over some units."""
    import torch
    import transformers

    save_tokenizer(folder, template=template)
    config = getattr(transformers, f"{architecture}Config")(
        **{
            **_sizes(64, max_length),
            "initializer_range": 0.1,
            "pad_token_id": pad_token_id,
            "num_labels": num_labels,
            "tie_word_embeddings": False,
            **fields,
        }
    )
    torch.manual_seed(seed)
    getattr(transformers, f"{architecture}ForSequenceClassification")(config).save_pretrained(folder)
    return folder


def add_tokens(folder: Path, tokens: Sequence[str]) -> Path:
    """Give the tokenizer in a folder more tokens, and the model beside it no more ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    return folder


def _sizes(hidden_size: int, max_length: int) -> dict[str, int]:
    """Sizes of two layers; head_dim 32 is the least that vLLM runs on CPUs."""
    return {
        "vocab_size": 272,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": max_length,
        "eos_token_id": 258,
    }
