"""Token ids of a text in which only the marked places are special tokens.

A tokenizer cannot tell the `<|im_end|>` that a template wrote from the one that a user typed. Here
it can: a copy of the tokenizer knows every markup token under another, unguessable name (same id,
same flags), `Markup.mark` writes these names into text that may carry markup, and whatever is left
unmarked goes through the ordinary path of the tokenizer as plain text. The whole string is still
tokenised in one piece, so nothing else changes: neither merges, nor prefix spaces, nor stripping.

This module knows nothing of chats and templates.
"""

import copy
import json
import re
import secrets
from collections.abc import Collection
from typing import Any

from tokenizers import Encoding, Tokenizer

# Unicode noncharacters: never assigned, untouched by every normal form. They only make collisions
# cheap to read; it is the nonce between them that makes them impossible to type.
_OPEN, _CLOSE, _OPEN_LITERAL, _CLOSE_LITERAL = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"


class Markup:
    """Encoder of marked text for one tokenizer.

    Args:
        spec: the parsed `tokenizer.json` of the tokenizer; not changed.
        tokens: added tokens of it that are markup, by their text.
    """

    def __init__(self, spec: dict[str, Any], *, tokens: Collection[str]) -> None:
        known = {added["content"] for added in spec["added_tokens"]}
        assert set(tokens) <= known, set(tokens) - known
        # Longest first: the same leftmost-longest choice that the tokenizer makes.
        self._tokens = sorted(tokens, key=lambda token: (-len(token), token))
        nonce = secrets.token_hex(8)
        self._names = {token: f"{_OPEN}{nonce}{i:x}{_CLOSE}" for i, token in enumerate(self._tokens)}
        self._literals = {token: f"{_OPEN_LITERAL}{nonce}{i:x}{_CLOSE_LITERAL}" for i, token in enumerate(self._tokens)}
        renamed = _renamed(spec, self._names)
        self._joint = Tokenizer.from_str(json.dumps(renamed))
        self._bare = Tokenizer.from_str(json.dumps(_without_prefix_space(renamed)))
        self._id_of = self._original_ids(spec)

    def _original_ids(self, spec: dict[str, Any]) -> dict[int, int]:
        # A renamed token that is not in the model's vocabulary is numbered anew on load.
        ids: dict[int, int] = {}
        for added in spec["added_tokens"]:
            content: str = added["content"]
            loaded = self._joint.token_to_id(self._names.get(content, content))
            assert loaded is not None and loaded not in ids, content
            if loaded != added["id"]:
                ids[loaded] = added["id"]
        return ids

    def mark(self, text: str, *, tokens: Collection[str] | None = None) -> str:
        """Return `text` with each of `tokens` (default: all markup tokens) marked as the special token."""
        return _replace(text, self._names, self._tokens if tokens is None else [t for t in self._tokens if t in tokens])

    def escape(self, text: str, *, keep: Collection[str] = ()) -> str:
        """Return `text` with its markup tokens, but those in `keep`, replaced by placeholders that `mark` passes by."""
        return _replace(text, self._literals, [t for t in self._tokens if t not in keep])

    def unescape(self, text: str) -> str:
        """Return `text` with the placeholders of `escape` turned back into the typed text."""
        if _OPEN_LITERAL in text:
            for token, placeholder in self._literals.items():
                text = text.replace(placeholder, token)
        return text

    def encode(self, marked: str) -> list[int]:
        """Return the ids of a marked text. No token is added that the text does not have."""
        return self._ids(self._joint.encode(marked, add_special_tokens=False))

    def encode_offsets(self, marked: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids and, per id, the character range of the marked text that it stands for."""
        encoding = self._joint.encode(marked, add_special_tokens=False)
        return self._ids(encoding), encoding.offsets

    def encode_bare(self, marked: str) -> list[int]:
        """Return the ids of a marked text that continues another one: no space is put before it."""
        return self._ids(self._bare.encode(marked, add_special_tokens=False))

    def _ids(self, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids
        return [self._id_of.get(i, i) for i in ids]


def _replace(text: str, names: dict[str, str], tokens: list[str]) -> str:
    if not any(token in text for token in tokens):
        return text
    pattern = "|".join(re.escape(token) for token in tokens)
    return re.sub(pattern, lambda match: names[match.group()], text)


def _renamed(spec: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a copy of `spec` in which the tokens of `names` cannot come out of ordinary text."""
    spec = copy.deepcopy(spec)
    # The post-processor only adds tokens and trims offsets; truncation and padding are of other uses.
    spec |= {"post_processor": None, "truncation": None, "padding": None}
    for added in spec["added_tokens"]:
        added["content"] = names.get(added["content"], added["content"])
    model = spec["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): i for token, i in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        # Converted SentencePiece models hold merges that spell `</s>`; without them it stays text.
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left not in names and right not in names and left + right not in names
        ]
    return spec


def _without_prefix_space(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `spec` that puts no space before a text."""
    spec = copy.deepcopy(spec)
    normalizer = spec["normalizer"]
    if normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        steps = [step for step in steps if step["type"] != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": steps}
    splitter = spec["pre_tokenizer"]
    if splitter is not None:
        for step in splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]:
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = "never"
            elif step["type"] == "ByteLevel":
                step["add_prefix_space"] = False
    return spec
