"""Every kind of chat template with its kind of tokenizer: what they consist of, and small tokenizers trained here."""

import dataclasses
import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Answers in the shape of the templates too, so that the SentencePiece-like models learn tokens that
# straddle "model\n" and the answer: the boundary case that joint tokenisation gets wrong.
CORPUS = [
    "user\nadd 47 and 8 assistant\nsure! 7+8=15,4+1=5 so answer: 55. cheers!",
    "model\nsure! the list is 3, 5, 9 so answer: 359. system\nYou are a helpful assistant.",
    "[INST] sort the letters [/INST] hello, here you go: abc. User: hi\n\nAssistant: hello Today Date: 26 Jul 2024",
] * 8


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of chat template with its kind of tokenizer, and what must come out of the two."""

    vocabulary: str
    """bytes, metaspace (space before a text), legacy (space before every section) or gemma (none)."""
    eos: str
    end_of_turn: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    """More special tokens."""
    words: tuple[str, ...] = ()
    """Added tokens that are not special."""
    strip_right: bool = False
    """Special tokens swallow the white space after them (Phi-3)."""
    generation_eos: tuple[str, ...] = ()
    native_system: bool = True
    separator: str = ""
    template_bos: bool = True


CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama3": Family(
        "bytes",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        (*LLAMA, "<|eom_id|>"),
        generation_eos=("<|eom_id|>",),
    ),
    "llama31": Family("bytes", "<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>", LLAMA),
    "llama32_now": Family("bytes", "<|eot_id|>", "<|eot_id|>", "<|begin_of_text|>", LLAMA[:2]),
    "qwen2": Family("bytes", "<|endoftext|>", "<|im_end|>", None, CHATML, generation_eos=("<|im_end|>",)),
    "qwen3": Family("bytes", "<|im_end|>", "<|im_end|>", None, ("<|im_start|>",), words=("<think>", "</think>")),
    "gemma2": Family(
        "gemma", "<eos>", "<end_of_turn>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), native_system=False
    ),
    "mistral": Family("legacy", "</s>", "</s>", "<s>", native_system=False, separator=" "),
    "internlm2": Family("metaspace", "</s>", "<|im_end|>", "<s>", CHATML),
    "deepseek_v2": Family(
        "bytes", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", separator=" "
    ),
    "deepseek_v3": Family(
        "bytes",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        words=("<think>", "</think>"),
    ),
    "yi": Family("legacy", "<|endoftext|>", "<|im_end|>", "<|startoftext|>", CHATML, template_bos=False),
    "phi3": Family(
        "legacy",
        "<|endoftext|>",
        "<|end|>",
        "<s>",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        strip_right=True,
        native_system=False,
    ),
    "plain": Family("bytes", "<|endoftext|>", "<|endoftext|>"),
}
EVERY_TOKEN = sorted(
    {token for f in FAMILIES.values() for token in (f.bos, f.eos, *f.special, *f.words) if token}
    | {"[INST]", "[/INST]"}
)


def train(family: Family) -> Tokenizer:
    """Return a small tokenizer of the family's kind that covers every byte."""
    special = [token for token in (family.bos, family.eos, *family.special) if token]
    if family.vocabulary == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(CORPUS, trainer)
    else:
        tokenizer = sentencepiece_like(family.vocabulary, special)
    strip = family.strip_right
    tokenizer.add_special_tokens([AddedToken(token, rstrip=strip, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in family.words])
    if family.bos:
        # As in the published files: asked to, the tokenizer puts a BOS of its own. Rendering must not ask.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))]
        )
    return tokenizer


def sentencepiece_like(kind: str, special: Sequence[str]) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    # Control tokens first and byte tokens, as SentencePiece has them; and merges that spell "</s>",
    # as conversions of SentencePiece models have them.
    spelt = ["<", "</", "</s", "</s>"] if "</s>" in special else []
    pieces = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *spelt, "/", "s", ">"]
    pieces += sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("<", "/"), ("</", "s"), ("</s", ">")] if spelt else []
    merges += [(left, right) for left, right in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    start = [decoders.Strip(" ", 1, 0)]
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif kind == "gemma":
        tokenizer.normalizer, start = space, []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *start]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return tokenizer
