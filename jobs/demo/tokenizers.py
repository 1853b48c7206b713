"""The tokenizers and chat templates of the tiny models: one family per real architecture.

Not the place where chats are rendered (that is `fusion.chat`). The one idea: each family keeps what
makes the real one different (byte-level or SentencePiece-like BPE, its special tokens, its template,
its way to say that a turn is over), shrunk to a vocabulary of a few hundred.
"""

import dataclasses
import json
import string
from collections.abc import Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

BYTE_LEVEL = "byte_level"
SENTENCEPIECE = "sentencepiece"

# What cuts text into words before byte-level BPE: digits one by one, as arithmetic needs it. It is Qwen's pattern:
# transformers rebuilds a Qwen2 tokenizer with it whatever tokenizer.json says, so it has to be this one, and NFC too.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """What is particular to the tokenizer of one model family."""

    kind: str
    """`byte_level` or `sentencepiece`."""
    special_tokens: tuple[str, ...]
    """In id order; control tokens of the real family."""
    template: str
    scaffold: tuple[str, ...]
    """Plain text that the template writes; the tokenizer is trained on it too, else "assistant" is seven tokens."""
    bos: str | None
    eos: str
    pad: str
    unk: str | None
    composed: bool
    """Whether text is brought to Unicode's composed form (NFC) first."""
    stops: tuple[str, ...]
    """Tokens that end an answer, the end of turn first; they become `eos_token_id` of generation_config.json."""


FAMILIES: dict[str, Family] = {
    "llama": Family(
        kind=BYTE_LEVEL,
        special_tokens=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|finetune_right_pad_id|>",
        ),
        template=_LLAMA_TEMPLATE,
        scaffold=("user", "assistant", "system", "\n\n"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        unk=None,
        composed=False,
        stops=("<|eot_id|>", "<|end_of_text|>"),
    ),
    "chatml": Family(
        kind=BYTE_LEVEL,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        template=_CHATML_TEMPLATE,
        scaffold=("user\n", "assistant\n", "system\n", "\n"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        unk=None,
        composed=True,
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "gemma": Family(
        kind=SENTENCEPIECE,
        special_tokens=(
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<start_of_turn>",
            "<end_of_turn>",
        ),
        template=_GEMMA_TEMPLATE,
        scaffold=("user\n", "model\n", "\n"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        composed=False,
        stops=("<end_of_turn>", "<eos>"),
    ),
    "mistral": Family(
        kind=SENTENCEPIECE,
        special_tokens=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        template=_MISTRAL_TEMPLATE,
        scaffold=(" ",),
        bos="<s>",
        eos="</s>",
        pad="<unk>",
        unk="<unk>",
        composed=False,
        stops=("</s>",),
    ),
}


def train_tokenizer(
    family: Family,
    *,
    texts: Sequence[str],
    vocab_size: int,
    all_bytes: bool,
    max_length: int,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `family` trained on `texts` and on the family's own scaffold.

    Args:
        vocab_size: number of tokens, special and byte tokens included.
        all_bytes: True covers every byte, so that any text round-trips (in a SentencePiece-like one all but U+2581,
            its mark for a space); False covers printable ASCII, and other characters are dropped or unknown.
        max_length: context length written into tokenizer_config.json.
    """
    # A fifth of the corpus: enough for role names to become single tokens.
    corpus = [
        *texts,
        *(piece for piece in family.scaffold for _ in range(len(texts) // 5)),
    ]
    if family.kind == BYTE_LEVEL:
        backend = _byte_level(family, corpus, vocab_size=vocab_size, all_bytes=all_bytes)
    else:
        backend = _sentencepiece_like(family, corpus, vocab_size=vocab_size, all_bytes=all_bytes)
    if family.bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, backend.token_to_id(family.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        unk_token=family.unk,
        chat_template=family.template,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _byte_level(family: Family, corpus: Sequence[str], *, vocab_size: int, all_bytes: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC() if family.composed else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if all_bytes else _byte_level_ascii()
    return _train(backend, family, corpus, vocab_size=vocab_size, alphabet=alphabet)


def _byte_level_ascii() -> list[str]:
    """Return printable ASCII and the newline as byte-level BPE spells them (a space is `Ġ`, a newline `Ċ`)."""
    return sorted((set(string.printable) - set(string.whitespace)) | {"Ġ", "Ċ"})


def _sentencepiece_like(family: Family, corpus: Sequence[str], *, vocab_size: int, all_bytes: bool) -> Tokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if all_bytes else []
    learner = Tokenizer(models.BPE(unk_token=family.unk))
    learner.normalizer = normalizers.Replace(" ", "▁")
    split_words = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            split_words,
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    alphabet = sorted((set(string.printable) - set(string.whitespace)) | {"▁", "\n"})
    _train(
        learner,
        family,
        corpus,
        vocab_size=vocab_size - len(byte_tokens),
        alphabet=alphabet,
    )

    learnt = json.loads(learner.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].get)
    num_special = len(family.special_tokens)
    ordered = [*tokens[:num_special], *byte_tokens, *tokens[num_special:]]
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(ordered)},
            merges=[tuple(merge) for merge in learnt["merges"]],
            unk_token=family.unk,
            fuse_unk=True,
            byte_fallback=all_bytes,
        )
    )
    backend.normalizer = learner.normalizer
    backend.pre_tokenizer = learner.pre_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(_special(family))
    return backend


def _train(
    backend: Tokenizer,
    family: Family,
    corpus: Sequence[str],
    *,
    vocab_size: int,
    alphabet: list[str],
) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special(family),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


def _special(family: Family) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in family.special_tokens]
