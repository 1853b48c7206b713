"""Rows that `fuseline score` must refuse, each with its reason, and a reward model that refuses and fails on some."""

import json
from pathlib import Path

from tiny_models import TEMPLATE, save_reward_model

MAX_LENGTH = 160
UNRENDERABLE = "unrenderable"
NAN_BYTE = "\x07"
"""A conversation with this letter gets a score of NaN."""


def _line(**fields) -> bytes:
    return json.dumps(fields).encode()


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b'{"prompt": "a", "response": }', "bad_json"),
    "not UTF-8": (b'{"prompt": "a", "response": "\xff\xfe"}', "bad_utf8"),
    "NaN": (b'{"prompt": "a", "response": "b", "weight": NaN}', "bad_number"),
    "infinite number": (b'{"prompt": "a", "response": "b", "weight": 1e999}', "bad_number"),
    "number of 5000 digits": (b'{"prompt": "a", "response": "b", "n": ' + b"9" * 5000 + b"}", "bad_number"),
    "key twice": (b'{"prompt": "a", "response": "b", "response": "c"}', "duplicate_key"),
    "half a surrogate pair": (b'{"prompt": "a", "response": "\\ud800"}', "bad_unicode"),
    "nested deeply": (b'{"prompt": "a", "response": "b", "x": ' + b"[" * 70 + b"]" * 70 + b"}", "too_deep"),
    "a list": (b'["prompt", "response"]', "not_an_object"),
    "a number": (b"3", "not_an_object"),
    "no field": (b"{}", "missing_field"),
    "no response": (_line(prompt="a"), "missing_field"),
    "no prompt": (_line(response="a"), "missing_field"),
    "null response": (_line(prompt="a", response=None), "missing_field"),
    "two forms": (_line(prompt="a", response="b", responses=["c"]), "ambiguous_fields"),
    "messages and prompt": (_line(messages=[USER, ANSWER], prompt="a"), "ambiguous_fields"),
    "prompt is a number": (_line(prompt=3, response="b"), "bad_field"),
    "responses is text": (_line(prompt="a", responses="b"), "bad_field"),
    "responses is empty": (_line(prompt="a", responses=[]), "bad_field"),
    "a response is a number": (_line(prompt="a", responses=["b", 3]), "bad_field"),
    "id is a list": (_line(id=["a"], prompt="a", response="b"), "bad_field"),
    "id is true": (_line(id=True, prompt="a", response="b"), "bad_field"),
    "id is empty": (_line(id="", prompt="a", response="b"), "bad_field"),
    "id is long": (_line(id="x" * 129, prompt="a", response="b"), "bad_field"),
    "messages are text": (_line(messages="hi"), "bad_field"),
    "no message": (_line(messages=[]), "bad_messages"),
    "message is text": (_line(messages=["hi", "yes"]), "bad_messages"),
    "unknown role": (_line(messages=[{"role": "tool", "content": "hi"}, ANSWER]), "bad_messages"),
    "content is null": (_line(messages=[USER, {"role": "assistant", "content": None}]), "bad_messages"),
    "tool call": (_line(messages=[USER, {**ANSWER, "tool_calls": [{"name": "f"}]}]), "bad_messages"),
    "user speaks last": (_line(messages=[USER, ANSWER, USER]), "invalid_roles"),
    "only the answer": (_line(messages=[ANSWER]), "invalid_roles"),
    "system in the middle": (_line(messages=[USER, {"role": "system", "content": "x"}, ANSWER]), "invalid_roles"),
    "template refuses": (_line(prompt=UNRENDERABLE, response="b"), "invalid_roles"),
    "empty response": (_line(prompt="a", response=""), "empty_response"),
    "too long for the model": (_line(prompt="a", response="b" * 200), "context_length_exceeded"),
    "NaN score": (_line(prompt="a", response=f"b{NAN_BYTE}"), "non_finite_score"),
    "too many responses": (_line(prompt="a", responses=["b"] * 1025), "too_many_responses"),
    "too much text": (_line(prompt="a", response="b" * (4 << 20)), "too_long"),
}
"""Name -> a line without its end, and the reason. Only the model refuses the last kinds of `MODEL_REASONS`."""

MODEL_KINDS = ("template refuses", "too long for the model", "NaN score")


def save_odd_reward_model(folder: Path, **fields) -> Path:
    """Save a tiny reward model whose template refuses one text, and whose scores are NaN with one letter."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    refusing = f"{{% if m.content == '{UNRENDERABLE}' %}}{{{{ raise_exception('never this') }}}}{{% endif %}}"
    template = TEMPLATE.replace("<|im_start|>{{ m.role }}", refusing + "<|im_start|>{{ m.role }}", 1)
    save_reward_model(folder, template=template, max_length=MAX_LENGTH, **fields)
    (token,) = AutoTokenizer.from_pretrained(folder).encode(NAN_BYTE, add_special_tokens=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
