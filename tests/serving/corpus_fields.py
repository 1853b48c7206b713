"""The second half of the hand corpus: requests whose HTTP is right and whose fields are not."""

import json
from collections.abc import Iterator
from typing import Any

from corpus import ASK, CHAT, ITEM, OK, PAIRS, RANK, REWARD, SAID, SCORE, TO_CHAT, TO_REWARDS, Case, post

UNSUPPORTED = """
    chat_template chat_template_kwargs mm_processor_kwargs guided_json guided_regex guided_choice guided_grammar
    structured_outputs prompt_logprobs priority cache_salt tools tool_choice response_format logit_bias top_k min_p
    best_of use_beam_search functions audio modalities reasoning_effort metadata store service_tier
    stop_token_ids ignore_eos min_tokens echo add_generation_prompt documents vllm_xargs kv_transfer_params
""".split()  # noqa: SIM905


def chat() -> Iterator[Case]:
    """Chat requests of a wrong form or beyond a limit."""
    for name in UNSUPPORTED:
        yield post(f"chat with {name}", TO_CHAT, {**ASK, name: 1}, (400, "unsupported_parameter"))
    bad = (400, "invalid_request")
    wrong: dict[str, list[Any]] = {
        "model": [None, 1, "", [CHAT], "x" * 129],
        "messages": [None, "hi", [], {}, [None], ["hi"], [[]], [{}]],
        "max_tokens": [0, -1, 4097, 2.5, "2", True, [], 10**400],
        "temperature": [-0.1, 2.1, "1", True, []],
        "top_p": [0, 1.1, "1"],
        "n": [0, 9, 1.5],
        "stop": [1, "", ["a"] * 5, [""], ["a", 1], "x" * 257],
        "seed": [2**63, -(2**63) - 1, "1"],
        "logprobs": [1, "true"],
        "top_logprobs": [1, 21, -1],
        "stream": [1, "true"],
        "stream_options": [{"include_usage": True}, True],
        "presence_penalty": [2.1],
        "frequency_penalty": [-2.1],
        "user": [1, "x" * 513],
    }
    for field, values in wrong.items():
        for value in values:
            yield post(f"chat: {field} is {json.dumps(value)[:40]}", TO_CHAT, {**ASK, field: value}, bad)
    turns: dict[str, tuple[Any, str]] = {
        "role tool": ({"role": "tool", "content": "x"}, "invalid_request"),
        "role developer": ({"role": "developer", "content": "x"}, "invalid_request"),
        "role User": ({"role": "User", "content": "x"}, "invalid_request"),
        "no role": ({"content": "x"}, "invalid_request"),
        "no content": ({"role": "user"}, "invalid_request"),
        "content null": ({"role": "user", "content": None}, "invalid_request"),
        "content in parts": ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "invalid_request"),
        "a name": ({"role": "user", "content": "x", "name": "n"}, "unknown_field"),
        "assistant last": ({"role": "assistant", "content": "x"}, "invalid_roles"),
        "system last": ({"role": "system", "content": "x"}, "invalid_roles"),
    }
    for name, (turn, code) in turns.items():
        yield post(f"chat turn: {name}", TO_CHAT, {**ASK, "messages": [turn]}, (400, code))
    user = ASK["messages"][0]
    system = {"role": "system", "content": "x"}
    yield post(
        "a system turn in the middle", TO_CHAT, {**ASK, "messages": [user, system, user]}, (400, "invalid_roles")
    )
    yield post("1,025 turns", TO_CHAT, {**ASK, "messages": [user] * 1025}, bad)
    long = {**ASK, "messages": [{"role": "user", "content": "x " * 300_000}]}
    yield post("a prompt that is too long", TO_CHAT, long, (400, "context_length_exceeded"))
    yield post("an unknown field", TO_CHAT, {**ASK, "temprature": 1}, (400, "unknown_field"))
    yield post(
        "an unknown stream option", TO_CHAT, {**ASK, "stream": True, "stream_options": {"x": 1}}, (400, "unknown_field")
    )
    yield post("two limits", TO_CHAT, {**ASK, "max_completion_tokens": 2}, bad)
    yield post("no model of this name", TO_CHAT, {**ASK, "model": "none"}, (404, "model_not_found"))
    yield post("a model name that is a path", TO_CHAT, {**ASK, "model": "../../etc/passwd"}, (404, "model_not_found"))
    yield post("whole numbers with a point", TO_CHAT, {**ASK, "max_tokens": 2.0, "seed": 1.0}, OK)
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "seed", "stream", "logprobs", "user"))
    yield post("null for what is left out", TO_CHAT, {**ASK, **nulls}, OK)


def rewards() -> Iterator[Case]:
    """Scoring requests of a wrong form or beyond a limit, and items with errors of their own."""
    bad = (400, "invalid_request")
    items: dict[str, Any] = {
        "nothing": {},
        "only a prompt": {"prompt": "q"},
        "only a response": {"response": "a"},
        "response and responses": {**ITEM, "responses": ["b"]},
        "messages and a prompt": {"messages": SAID, "prompt": "q"},
        "no messages": {"messages": []},
        "no responses": {"prompt": "q", "responses": []},
        "a response that is a number": {"prompt": "q", "response": 5},
        "a response among them that is null": {"prompt": "q", "responses": ["a", None]},
        "an empty id": {**ITEM, "id": ""},
        "an id of 129 characters": {**ITEM, "id": "x" * 129},
        "an id that is a number": {**ITEM, "id": 1},
        "null": None,
        "a string": "a",
    }
    for name, item in items.items():
        yield post(f"item: {name}", TO_REWARDS, {**SCORE, "input": [item]}, bad)
    fields: dict[str, list[Any]] = {
        "model": [None, 1, ""],
        "input": [None, [], {}, "x", ITEM],
        "truncation": ["middle", None, True],
        "on_error": ["ignore", None],
        "allow_empty": ["true", 1, None],
        "normalize": ["softmax", True],
        "return": [["logits"], "objectives", None, ["objectives"] * 9],
    }
    for field, values in fields.items():
        for value in values:
            yield post(f"rewards: {field} is {json.dumps(value)[:40]}", TO_REWARDS, {**SCORE, field: value}, bad)
    yield post("an unknown field in a request", TO_REWARDS, {**SCORE, "top_n": 1}, (400, "unknown_field"))
    yield post(
        "an unknown field in an item", TO_REWARDS, {**SCORE, "input": [{**ITEM, "weight": 1}]}, (400, "unknown_field")
    )
    turn = {**SAID[1], "weight": 1}
    yield post(
        "an unknown field in a turn", TO_REWARDS, {**SCORE, "input": [{"messages": [turn]}]}, (400, "unknown_field")
    )
    yield post("the name inside the service", TO_REWARDS, {**SCORE, "return_": ["objectives"]}, (400, "unknown_field"))
    yield post("duplicate ids", TO_REWARDS, {**SCORE, "input": [{**ITEM, "id": "x"}] * 2}, bad)
    many = (413, "too_many_items")
    yield post("64 items", TO_REWARDS, {**SCORE, "input": [ITEM] * 64}, OK)
    yield post("65 items", TO_REWARDS, {**SCORE, "input": [ITEM] * 65}, many)
    yield post("65 responses", TO_REWARDS, {**SCORE, "input": [{"prompt": "q", "responses": ["a"] * 65}]}, many)
    yield post("a chat model", TO_REWARDS, {**SCORE, "model": CHAT}, bad)
    yield post("no such reward model", TO_REWARDS, {**SCORE, "model": "none"}, (404, "model_not_found"))
    own: dict[str, tuple[Any, str]] = {
        "an empty response": ({"prompt": "q", "response": ""}, "empty_response"),
        "user last": ({"messages": SAID[:1]}, "invalid_roles"),
        "assistant alone": ({"messages": SAID[1:]}, "invalid_roles"),
        "system in the middle": (
            {"messages": [*SAID[:1], {"role": "system", "content": "x"}, *SAID[1:]]},
            "invalid_roles",
        ),
        "too long": ({"prompt": "q", "response": "x " * 100_000}, "context_length_exceeded"),
    }
    for name, (item, code) in own.items():
        yield post(f"item with its own error: {name}", TO_REWARDS, {**SCORE, "input": [item, ITEM]}, OK, item=code)
        whole = {**SCORE, "input": [ITEM, item], "on_error": "fail"}
        yield post(f"item that fails the request: {name}", TO_REWARDS, whole, (400, code))
    yield post(
        "an empty response that is allowed",
        TO_REWARDS,
        {**SCORE, "input": [{"prompt": "q", "response": ""}], "allow_empty": True},
        OK,
    )
    yield post("too long, cut as asked", TO_REWARDS, {**SCORE, "input": [own["too long"][0]], "truncation": "left"}, OK)


def aliases() -> Iterator[Case]:
    """The shapes of other services."""
    bad, unsupported, empty = (400, "invalid_request"), (400, "unsupported_parameter"), (400, "empty_response")
    yield post("score: three queries, two documents", "/v1/score", {**PAIRS, "queries": ["a"] * 3}, bad)
    yield post("score: no documents", "/v1/score", {**PAIRS, "documents": []}, bad)
    yield post("score: both names", "/v1/score", {**PAIRS, "text_1": "q", "text_2": "a"}, bad)
    yield post("score: mixed names", "/v1/score", {"model": REWARD, "queries": "q", "text_2": "a"}, bad)
    yield post("score: token ids", "/v1/score", {**PAIRS, "documents": [[1, 2]]}, bad)
    yield post("score: an empty document", "/v1/score", {**PAIRS, "documents": ["a", ""]}, empty)
    yield post("score: 65 documents", "/v1/score", {**PAIRS, "documents": ["a"] * 65}, (413, "too_many_items"))
    for name in (
        "truncate_prompt_tokens",
        "max_tokens_per_doc",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "instruction",
    ):
        yield post(f"score with {name}", "/v1/score", {**PAIRS, name: 1}, unsupported)
    yield post("score: an unknown field", "/v1/score", {**PAIRS, "truncation": "left"}, (400, "unknown_field"))
    for target in ("/v1/rerank", "/v2/rerank"):
        for name in ("max_tokens_per_doc", "relevant_spans", "rank_fields", "max_chunks_per_doc", "priority"):
            yield post(f"{target} with {name}", target, {**RANK, name: 1}, unsupported)
        yield post(f"{target}: top_n is -1", target, {**RANK, "top_n": -1}, bad)
        yield post(f"{target}: one document alone", target, {**RANK, "documents": "a"}, bad)
        yield post(f"{target}: an empty document", target, {**RANK, "documents": ["", "a"]}, empty)
        yield post(
            f"{target}: a document with a title",
            target,
            {**RANK, "documents": [{"text": "a", "title": "t"}]},
            (400, "unknown_field"),
        )
        yield post(f"{target}: a chat model", target, {**RANK, "model": CHAT}, bad)
    judged = {"model": REWARD, "messages": SAID}
    yield post("a reward model streams", TO_CHAT, {**judged, "stream": True}, unsupported)
    yield post("a reward model answers twice", TO_CHAT, {**judged, "n": 2}, unsupported)
    yield post("a reward model without an answer", TO_CHAT, {**judged, "messages": SAID[:1]}, (400, "invalid_roles"))
    yield post("a reward model with settings", TO_CHAT, {**judged, "max_tokens": 8, "temperature": 0}, OK)


def texts() -> Iterator[Case]:
    """Texts that are legal and odd: they are scored and answered as text."""
    odd = {
        "special tokens": "<|im_end|><|im_start|>system\n</s><s>[INST]<|eot_id|><|endoftext|><pad>",
        "a template": "{{ 7*7 }}{% for x in ''.__class__.__mro__ %}{% endfor %}${7*7}%s%n{0}",
        "right to left": "\u202eabc\u202c\u2066\u2069\u200f",
        "zero width": "\u200b\u200d\ufeff",
        "control characters": "\x00\x01\x07\x1b[31m\x7f\x85",
        "combining marks": "e" + "\u0301" * 50,
        "astral planes": "\U0001f9d1\u200d\U0001f680\U0010ffff\ufffe",
        "an escaped pair": "\U0001d11e",
        "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "line ends": "\r\n\u2028\u2029data: [DONE]\n\n",
        "a space": " ",
    }
    for name, text in odd.items():
        yield post(f"chat about {name}", TO_CHAT, {**ASK, "messages": [{"role": "user", "content": text}]}, OK)
        yield post(f"reward of {name}", TO_REWARDS, {**SCORE, "input": [{"prompt": text, "response": text}]}, OK)
    yield post("an empty prompt", TO_REWARDS, {**SCORE, "input": [{"prompt": "", "response": "a"}]}, OK)
    yield post("an id of odd characters", TO_REWARDS, {**SCORE, "input": [{**ITEM, "id": "\u202e\x00'\";--"}]}, OK)
