"""The HTTP front without Ray: what is accepted, what is refused and with which code, and the shapes of answers.

The engines here are scripts; real ones are in tests/e2e/test_serve.py.
"""

import asyncio
import json
import pickle

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fusion.errors import ModelError
from scripted_service import LIMITS, USER, ScriptedChat, ScriptedReward, client, refused
from serving.aliases import RerankRequest, ScoreRequest
from serving.app import build_app
from serving.backends import Delta, SampledToken, merged
from serving.body import MAX_KEYS, parse_json
from serving.config import ServeConfig
from serving.errors import ApiError
from serving.schemas import ChatCompletionRequest, RewardRequest

CHAT = {"model": "chat", "messages": USER}
DEEP = '{"model": "chat", "messages": ' + "[" * 100 + "]" * 100 + "}"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_request"),
        (b'"text"', 400, "invalid_request"),
        (b"{", 400, "invalid_json"),
        (b'{"model": "chat"} trailing', 400, "invalid_json"),
        (b'{"model": "chat", "model": "chat"}', 400, "invalid_json"),
        (b'{"model": "chat", "messages": [{"role": "user", "role": "user", "content": ""}]}', 400, "invalid_json"),
        (b'{"model": "chat", "messages": [], "temperature": NaN}', 400, "invalid_json"),
        (b'{"model": "chat", "messages": [], "temperature": -Infinity}', 400, "invalid_json"),
        (b'{"model": "chat", "messages": [], "temperature": 1e999}', 400, "invalid_json"),
        (b'{"model": ' + b"9" * 4000 + b"}", 400, "invalid_request"),
        (b'{"model": "\\ud800", "messages": []}', 400, "invalid_json"),
        (b'{"\\udfff": 1}', 400, "invalid_json"),
        ("{}".encode("utf-16"), 400, "invalid_json"),
        (b"\xef\xbb\xbf{}", 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (DEEP.encode(), 400, "invalid_json"),
        (b"[" * 4000, 400, "invalid_json"),
        (b" " * 5000, 413, "body_too_large"),
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/rewards"])
def test_bodies_that_are_not_a_request(route, body, status, code):
    refused(client().post(route, content=body, headers={"content-type": "application/json"}), status, code)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=UTF-8", "content-encoding": "identity"}, 200),
        ({"content-type": "Application/JSON"}, 200),
    ],
    ids=repr,
)
def test_media_types(headers, status):
    answer = client().post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
    if status == 200:
        assert answer.status_code == 200
    else:
        refused(answer, status, "unsupported_media_type")


def test_numbers_of_thousands_of_digits_are_refused():
    with pytest.raises(ApiError, match="too many digits"):
        parse_json(b"9" * 5000)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (RewardRequest, {"input": [0] * 1000}),
        (RewardRequest, {"input": [{"prompt": "a", "responses": [0] * 1000}]}),
        (RewardRequest, {"input": [{"messages": [0] * 1000}]}),
        (RewardRequest, {"input": [{"prompt": "a", "response": "b"}], "return": ["x"] * 8}),
        (ChatCompletionRequest, {"messages": [0] * 1000}),
        (ChatCompletionRequest, {"messages": CHAT["messages"], "stop": [0] * 1000}),
        (ScoreRequest, {"queries": [0] * 1000, "documents": "a"}),
        (ScoreRequest, {"text_1": "a", "text_2": [0] * 1000}),
        (RerankRequest, {"query": "a", "documents": [0] * 1000}),
    ],
    ids=repr,
)
def test_a_list_of_wrong_elements_is_read_to_the_first(model, fields):
    """A million errors took gigabytes. Two, where a field or an element may have two types."""
    with pytest.raises(ValidationError) as raised:
        model.model_validate({"model": "m", **fields})
    assert raised.value.error_count() <= 2


def test_objects_have_no_more_fields_than_requests_have():
    def body(fields):
        return json.dumps({f"k{i}": {} for i in range(fields)}).encode()

    assert len(parse_json(body(MAX_KEYS))) == MAX_KEYS
    with pytest.raises(ApiError, match="an object with more than 256 keys") as raised:
        parse_json(b'{"input": [' + body(MAX_KEYS + 1) + b"]}")
    assert raised.value.code == "unknown_field"


def test_a_body_is_counted_while_it_arrives():
    def drip():
        for _ in range(100):
            yield b" " * 100

    answer = client().post("/v1/rewards", content=drip(), headers={"content-type": "application/json"})
    refused(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"model": "rm"}, 400, "invalid_roles", "messages"),  # a reward model scores an assistant's turn
        ({"model": 3}, 400, "invalid_request", "model"),
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({"messages": "hi"}, 400, "invalid_request", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, 400, "invalid_request", "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "invalid_request", "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, 400, "unknown_field", "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_roles", "messages[0].role"),
        ({"messages": [*USER, {"role": "system", "content": "x"}, *USER]}, 400, "invalid_roles", "messages[1].role"),
        ({"messages": [{"role": "user", "content": "unrenderable"}]}, 400, "invalid_roles", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 64}]}, 400, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 50}], "max_tokens": 20}, 400, "context_length_exceeded", None),
        ({"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
        ({"max_tokens": 41}, 400, "invalid_request", "max_tokens"),
        ({"max_completion_tokens": 41}, 400, "invalid_request", "max_completion_tokens"),
        ({"max_tokens": 2.5}, 400, "invalid_request", "max_tokens"),
        ({"max_tokens": "5"}, 400, "invalid_request", "max_tokens"),
        ({"max_tokens": True}, 400, "invalid_request", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "invalid_request", "max_tokens"),
        ({"temperature": -0.1}, 400, "invalid_request", "temperature"),
        ({"temperature": 2.1}, 400, "invalid_request", "temperature"),
        ({"top_p": 0}, 400, "invalid_request", "top_p"),
        ({"n": 9}, 400, "invalid_request", "n"),
        ({"n": 0}, 400, "invalid_request", "n"),
        ({"stop": ["a"] * 5}, 400, "invalid_request", "stop"),
        ({"stop": [""]}, 400, "invalid_request", "stop"),
        ({"seed": 2**63}, 400, "invalid_request", "seed"),
        ({"logprobs": 3}, 400, "invalid_request", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_request", "top_logprobs"),
        ({"top_logprobs": 2}, 400, "invalid_request", "top_logprobs"),
        ({"presence_penalty": 3}, 400, "invalid_request", "presence_penalty"),
        ({"stream": "yes"}, 400, "invalid_request", "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "invalid_request", "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, 400, "unknown_field", "stream_options.x"),
        ({"tempature": 1}, 400, "unknown_field", "tempature"),
        *(
            ({name: None}, 400, "unsupported_parameter", name)
            for name in (
                "chat_template",
                "chat_template_kwargs",
                "mm_processor_kwargs",
                "guided_json",
                "structured_outputs",
                "prompt_logprobs",
                "priority",
                "cache_salt",
                "tools",
                "response_format",
                "logit_bias",
                "top_k",
                "best_of",
            )
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_chat_requests_that_are_refused(change, status, code, param):
    refused(client().post("/v1/chat/completions", json={**CHAT, **change}), status, code, param)


def test_an_answer():
    chat = ScriptedChat()
    answer = client(chat).post("/v1/chat/completions", json={**CHAT, "n": 2, "seed": 7, "stop": "z"}).json()
    assert [c["message"] for c in answer["choices"]] == [{"role": "assistant", "content": "abc", "refusal": None}] * 2
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop", "stop"]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert (answer["object"], answer["model"], answer["system_fingerprint"]) == ("chat.completion", "chat", "r1")
    (asked,) = chat.asked
    assert (asked.prompt_ids, asked.stop_token_ids, asked.stop, asked.seed) == ((1, 1), (2,), ("z",), 7)
    assert asked.max_tokens == 40  # the service's limit, which is below the 62 that there is room for


def test_greedy_answers_are_made_once_and_returned_n_times():
    chat = ScriptedChat()
    answer = client(chat).post("/v1/chat/completions", json={**CHAT, "n": 3, "temperature": 0}).json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["abc"] * 3
    assert [asked.n for asked in chat.asked] == [1]


def test_log_probabilities():
    body = {**CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 1}
    (choice,) = client().post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["content"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "\ufffd", "logprob": -9999.0, "bytes": None},
            ],
        }
    ]


def sse(text):
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def test_a_stream():
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    answer = client().post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last = sse(answer.text)
    assert last == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert [c["delta"] for chunk in chunks for c in chunk["choices"]] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {"content": "c"},
        {},
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_an_engine_that_fails_before_the_first_piece_gives_a_status():
    chat = ScriptedChat(fails=0)
    for stream in (True, False):
        refused(client(chat).post("/v1/chat/completions", json={**CHAT, "stream": stream}), 503, "backend_unavailable")
    assert chat.closed == 2


def test_an_engine_that_fails_later_gives_an_error_event_and_no_done():
    chat = ScriptedChat(fails=2)
    answer = client(chat).post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 200
    *_, last = sse(answer.text)
    assert json.loads(last)["error"]["code"] == "backend_unavailable"
    assert chat.closed == 1


def test_the_deadline_ends_answers_and_a_client_can_only_lower_it():
    chat = ScriptedChat("abcdefgh", delay_s=0.1)
    limits = LIMITS.model_copy(update={"chat_deadline_s": 0.35})
    asked = client(chat, limits=limits)
    refused(asked.post("/v1/chat/completions", json=CHAT), 408, "deadline_exceeded")
    *_, last = sse(asked.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
    assert json.loads(last)["error"]["code"] == "deadline_exceeded"
    for ignored in ("0", "-1", "nan", "inf", "100", "soon"):
        headers = {"x-request-timeout-seconds": ignored, "x-request-disconnect-disabled": "?1"}
        refused(asked.post("/v1/chat/completions", json=CHAT, headers=headers), 408, "deadline_exceeded")
    patient = client(ScriptedChat("ab", delay_s=0.1))
    assert patient.post("/v1/chat/completions", json=CHAT).status_code == 200
    headers = {"x-request-timeout-seconds": "0.05"}
    refused(patient.post("/v1/chat/completions", json=CHAT, headers=headers), 408, "deadline_exceeded")
    assert chat.closed == len(chat.asked) == 8


def test_overload_is_a_fast_429():
    chat = ScriptedChat(delay_s=0.2)
    app = build_app(
        chats={"chat": chat}, rewards={}, limits=LIMITS.model_copy(update={"max_in_flight": 1}), not_ready=lambda: None
    )

    async def two():
        import httpx

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as asked:
            return await asyncio.gather(*(asked.post("/v1/chat/completions", json=CHAT) for _ in range(2)))

    first, second = asyncio.run(two())
    assert first.status_code == 200
    refused(second, 429, "overloaded")


def test_routes_and_ids():
    asked = client(awaited="chat is loading")
    refused(asked.get("/v1/completions"), 404, "not_found")
    refused(asked.post("/v1/load_lora_adapter"), 404, "not_found")
    refused(asked.get("/v1/models/"), 404, "not_found")
    refused(asked.get("/docs"), 404, "not_found")
    answer = asked.get("/v1/rewards")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    refused(asked.delete("/v1/chat/completions"), 405, "method_not_allowed")
    assert "chat is loading" in refused(asked.get("/readyz"), 503, "not_ready")
    assert asked.get("/healthz").json() == {"status": "ok"}
    assert client().get("/readyz").json() == {"status": "ready"}
    assert asked.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert asked.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")
    cards = asked.get("/v1/models").json()["data"]
    assert [(c["id"], c["kind"], c["revision"], c["max_tokens"]) for c in cards] == [
        ("chat", "chat", "r1", 64),
        ("rm", "reward", "r1", 64),
    ]


def test_one_model():
    asked = client()
    assert asked.get("/v1/models/rm").json() == asked.get("/v1/models").json()["data"][1]
    assert asked.get("/v1/models/chat").json()["objectives"] is None
    refused(asked.get("/v1/models/none"), 404, "model_not_found", "model")
    refused(asked.get("/v1/models/"), 404, "not_found")
    refused(asked.get("/v1/models/a/b"), 404, "not_found")


def test_head_is_get_without_a_body_and_every_405_names_what_is_allowed():
    asked = client()
    for path in ("/healthz", "/readyz", "/v1/models", "/v1/models/chat"):
        assert asked.head(path).status_code == 200
        for method in ("OPTIONS", "PUT", "POST", "TRACE"):
            answer = asked.request(method, path)
            refused(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == "GET, HEAD"
    for path in ("/v1/rewards", "/v1/score", "/v1/rerank", "/v2/rerank", "/v1/chat/completions"):
        for method in ("OPTIONS", "GET", "DELETE"):
            answer = asked.request(method, path)
            refused(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == "POST"
    refused(asked.options("/v1/nothing"), 404, "not_found")


def test_a_query_is_refused_where_a_body_is_read():
    refused(client().post("/v1/chat/completions?stream=true", json=CHAT), 400, "unknown_field", "query")
    assert client().get("/v1/models?limit=1").status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"messages": [*USER, {"role": "user"}]}, "messages[1].content"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
    ids=repr,
)
def test_the_param_of_an_error_is_a_place_in_the_body(change, param):
    answer = client().post("/v1/chat/completions", json={**CHAT, **change})
    refused(answer, 400, "invalid_request")
    assert answer.json()["error"]["param"] == param


def test_whole_numbers_may_have_a_point_as_in_json_schemas():
    assert parse_json(b'[2.0, -1e3, 2.5, 1e300, "2.0"]') == [2, -1000, 2.5, 1e300, "2.0"]
    assert [type(value) for value in parse_json(b"[2.0, 2.5, 9007199254740992.0]")] == [int, float, float]
    assert client().post("/v1/chat/completions", json={**CHAT, "n": 1.0}).status_code == 200


def test_a_crash_is_an_envelope_without_a_traceback():
    class Crashing(ScriptedChat):
        def encode(self, messages):
            raise RuntimeError("secret detail")

    answer = client(Crashing()).post("/v1/chat/completions", json=CHAT)
    assert "secret" not in refused(answer, 500, "internal_error")


# ---- values -----------------------------------------------------------------------------------


def test_errors_cross_processes_whole():
    error = pickle.loads(pickle.dumps(ApiError("overloaded", "busy", param="model")))
    assert (error.code, error.message, error.param, error.status, error.retry_after_s) == (
        "overloaded",
        "busy",
        "model",
        429,
        1,
    )


def test_openai_clients_may_send_null_for_what_they_leave_out():
    optional = {name: None for name, f in ChatCompletionRequest.model_fields.items() if not f.is_required()}
    assert client().post("/v1/chat/completions", json={**CHAT, **optional}).status_code == 200


def test_serve_configs_that_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="no model to serve"):
        ServeConfig()
    with pytest.raises(ValidationError, match="use two names"):
        ServeConfig.of(chat={"a": tmp_path}, rewards={"a": tmp_path})
    with pytest.raises(ValidationError, match="model name 'a b'"):
        ServeConfig.of(chat={"a b": tmp_path})
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        ServeConfig.of(chat={"a": tmp_path}).check_folders()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        ServeConfig.of(rewards={"a": tmp_path}).check_folders()


def test_the_openapi_document_shows_the_bodies():
    document = client().get("/openapi.json").json()
    body = document["paths"]["/v1/rewards"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["model", "input"]
    assert body["additionalProperties"] is False
    assert "$ref" not in json.dumps(body)
    posts = [operations["post"] for operations in document["paths"].values() if "post" in operations]
    assert len(posts) == 5
    for post in posts:
        assert set(post["responses"]) - {"409"} == {"200", *map(str, (400, 404, 408, 413, 415, 429, 500, 503))}
        for status, answer in post["responses"].items():
            assert answer["headers"]["x-request-id"]["required"]
            assert ("retry-after" in answer["headers"]) == (status in ("429", "503"))
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(chat) == {"application/json", "text/event-stream"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_openapi_document_can_be_kept_from_sight():
    chats, rewards = {"chat": ScriptedChat()}, {"rm": ScriptedReward()}
    app = build_app(chats=chats, rewards=rewards, limits=LIMITS, not_ready=lambda: None, documented=False)
    asked = TestClient(app, raise_server_exceptions=False)
    refused(asked.get("/openapi.json"), 404, "not_found")
    assert asked.get("/v1/models").status_code == 200


@given(
    st.lists(
        st.builds(
            Delta,
            st.integers(0, 2),
            st.text(max_size=3),
            st.integers(0, 3),
            st.sampled_from([None, None, "stop", "length"]),
            st.lists(st.builds(SampledToken, st.integers(0, 9), st.just(-0.5), st.just(())), max_size=2).map(tuple),
        ),
        max_size=12,
    )
)
def test_merged_pieces_say_what_all_of_them_said(deltas):
    found = merged(deltas)
    assert [d.index for d in found] == list(dict.fromkeys(d.index for d in deltas))
    for one in found:
        own = [d for d in deltas if d.index == one.index]
        assert one.text == "".join(d.text for d in own)
        assert one.num_tokens == sum(d.num_tokens for d in own)
        assert one.tokens == tuple(token for d in own for token in d.tokens)
        assert one.finish_reason == next((d.finish_reason for d in reversed(own) if d.finish_reason), None)


def test_merging_worked():
    pieces = [Delta(0, "a", 1), Delta(1, "x", 1), Delta(0, "b", 2, "stop")]
    assert merged(pieces) == [Delta(0, "ab", 3, "stop"), Delta(1, "x", 1)]
