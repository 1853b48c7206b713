"""Promises of fusion.markup on tokenizers small enough to read."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models

from fusion.markup import Markup


def spec_of(model: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return json.loads(tokenizer.to_str())


VOCAB = {piece: i for i, piece in enumerate(["</s>", "<", "/", "s", ">", "a", "</", "</s"])}
MERGES = [("<", "/"), ("</", "s"), ("</s", ">")]


@pytest.mark.parametrize(
    "model",
    [
        models.BPE(VOCAB, MERGES),
        models.BPE(VOCAB, [], ignore_merges=True),
        models.Unigram([(piece, -1.0 if piece == "</s>" else -2.0) for piece in VOCAB], unk_id=None),
    ],
    ids=["merges", "ignore_merges", "unigram"],
)
def test_only_a_marked_token_becomes_its_id(model: Any) -> None:
    spec = spec_of(model)
    before = json.dumps(spec)
    markup = Markup(spec, tokens={"</s>"})
    assert json.dumps(spec) == before
    assert markup.encode(markup.mark("a</s>")) == [5, 0]
    for encode in (markup.encode, markup.encode_bare):
        assert 0 not in encode("</s>")
        assert 0 not in encode("a</s>a")
        assert "".join(list(VOCAB)[i] for i in encode("a</s>a")) == "a</s>a"


def test_escaped_text_passes_marking_and_comes_back() -> None:
    markup = Markup(spec_of(models.BPE(VOCAB, MERGES)), tokens={"</s>"})
    escaped = markup.escape("a</s>a")
    assert "</s>" not in escaped
    assert markup.mark(escaped) == escaped
    assert markup.unescape(escaped + markup.mark("</s>")) == "a</s>a" + markup.mark("</s>")
    assert markup.escape("a</s>a", keep={"</s>"}) == "a</s>a"
    assert markup.mark("a</s>a", tokens=()) == "a</s>a"


def test_ids_are_those_of_the_file_though_the_copy_numbers_its_tokens_anew() -> None:
    spec = spec_of(models.BPE({"a": 0, "b": 1}, []))
    (added,) = spec["added_tokens"]
    spec["added_tokens"] = [added | {"id": 10}, added | {"id": 20, "content": "<x>"}]
    markup = Markup(spec, tokens={"</s>", "<x>"})
    assert markup.encode(markup.mark("a<x>b</s>")) == [0, 20, 1, 10]
