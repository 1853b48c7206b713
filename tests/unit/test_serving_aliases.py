"""Scores in the shapes of vLLM, Cohere, Jina and NVIDIA: the same bits as `POST /v1/rewards`, and what is refused."""

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted_service import LIMITS, USER, ScriptedChat, ScriptedReward, client, refused
from serving.backends import Scored

ROOMY = LIMITS.model_copy(update={"rewards_body_bytes": 1 << 20, "chat_body_bytes": 1 << 20, "max_reward_items": 64})
SAID = [*USER, {"role": "assistant", "content": "four"}]


class HashedReward(ScriptedReward):
    """Scores a conversation with all 52 bits of a number drawn from its text."""

    def __init__(self, objectives=()):
        super().__init__()
        self.objectives = objectives

    async def score(self, conversations, *, truncation):
        await super().score(conversations, truncation=truncation)
        return [
            Scored(self.number(c), 3, objectives={o: self.number(c, o) for o in self.objectives}) for c in conversations
        ]

    def number(self, conversation, salt=""):
        text = salt + "\0".join(turn.content for turn in conversation)
        return math.ldexp(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) - 2**55, -50)


def attributes(answer):
    """Read an answer as NVIDIA's own example does."""
    content = answer["choices"][0]["message"]["content"]
    return {name: float(value) for name, value in (pair.split(":") for pair in content.split(","))}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(prompt=TEXT, responses=st.lists(TEXT, min_size=1, max_size=4), objectives=st.sampled_from([(), ("a", "b:c,d")]))
def test_all_routes_give_the_same_bits(prompt, responses, objectives):
    asked = client(reward=HashedReward(objectives), limits=ROOMY)

    def post(route, **body):
        answer = asked.post(route, json={"model": "rm", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    pairs = [{"prompt": prompt, "response": response} for response in responses]
    expected = [repr(r["score"]) for r in post("/v1/rewards", input=pairs)["results"]]
    shared = post("/v1/rewards", input=[{"prompt": prompt, "responses": responses}])["results"]
    assert [repr(r["score"]) for r in shared] == expected
    for query in (prompt, [prompt], [prompt] * len(responses)):
        for first, second in (("queries", "documents"), ("text_1", "text_2")):
            data = post("/v1/score", **{first: query, second: responses})["data"]
            assert [(d["index"], repr(d["score"])) for d in data] == list(enumerate(expected))
    for route in ("/v1/rerank", "/v2/rerank"):
        results = post(route, query=prompt, documents=responses)["results"]
        assert {r["index"]: repr(r["relevance_score"]) for r in results} == dict(enumerate(expected))
        order = [(-r["relevance_score"], r["index"]) for r in results]
        assert order == sorted(order)
        some = post(route, query=prompt, documents=[{"text": r} for r in responses], top_n=2)["results"]
        assert some == results[:2]
    for response, score in zip(responses, expected, strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        answer = post("/v1/chat/completions", messages=turns)
        assert repr(attributes(answer)["reward"]) == score
        assert list(attributes(answer)) == ["reward", *(o.replace(":", "_").replace(",", "_") for o in objectives)]
        logprobs = answer["choices"][0]["logprobs"]["content"]
        assert {token["token"]: token["logprob"] for token in logprobs} == attributes(answer)


def test_objectives_whose_names_meet_the_scores_or_one_another_lose_nothing():
    names = ("reward", "a:b", "a_b", "a,b", "reward_")
    reward = HashedReward(names)
    answer = client(reward=reward, limits=ROOMY).post("/v1/chat/completions", json=NIM).json()
    found = attributes(answer)
    assert list(found) == ["reward", "reward__", "a_b_", "a_b", "a_b__", "reward_"]
    (conversation,) = reward.calls[0][0]
    assert list(found.values()) == [reward.number(conversation, salt) for salt in ("", *names)]
    logprobs = answer["choices"][0]["logprobs"]["content"]
    assert [(token["token"], token["logprob"]) for token in logprobs] == list(found.items())


def test_one_prompt_with_many_documents_is_one_prompt_for_the_model():
    reward = HashedReward()
    client(reward=reward).post("/v1/score", json={"model": "rm", "queries": "q", "documents": ["a", "b"]})
    ((conversations, truncation),) = reward.calls
    assert [[turn.content for turn in c] for c in conversations] == [["q", "a"], ["q", "b"]]
    assert truncation == "error"


def test_the_shapes():
    asked = client()
    score = asked.post("/v1/score", json={"model": "rm", "queries": "q", "documents": "four"}).json()
    assert score["id"].startswith("score-") and score["created"] > 0
    assert {k: v for k, v in score.items() if k not in ("id", "created")} == {
        "object": "list",
        "model": "rm",
        "model_revision": "r1",
        "data": [{"index": 0, "object": "score", "score": 4.0}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    body = {"model": "rm", "query": "q", "documents": ["a", {"text": "ccc"}, "bbb"]}
    ranked = asked.post("/v2/rerank", json=body).json()
    assert ranked.pop("id").startswith("rerank-")
    assert ranked == {
        "model": "rm",
        "model_revision": "r1",
        "results": [
            {"index": 1, "relevance_score": 3.0},
            {"index": 2, "relevance_score": 3.0},
            {"index": 0, "relevance_score": 1.0},
        ],
        "usage": {"prompt_tokens": 15, "total_tokens": 15},
    }
    best = asked.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": True}).json()["results"]
    assert best == [{"index": 1, "relevance_score": 3.0, "document": {"text": "ccc"}}]
    for top_n in (None, 0, 99):
        assert len(asked.post("/v1/rerank", json={**body, "top_n": top_n}).json()["results"]) == 3
    chat = asked.post("/v1/chat/completions", json={"model": "rm", "messages": SAID}).json()
    assert (chat["object"], chat["model"], chat["system_fingerprint"]) == ("chat.completion", "rm", "r1")
    assert chat["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
    (choice,) = chat["choices"]
    assert choice["message"] == {"role": "assistant", "content": "reward:4.0,length:1.0", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_scores_are_raw_unless_an_activation_is_asked_for():
    body = {"model": "rm", "query": "q", "documents": ["four"], "queries": "q"}
    asked = client()
    for name, route, drop in (("score", "/v1/score", "query"), ("relevance_score", "/v1/rerank", "queries")):
        for activation, expected in ((None, 4.0), (False, 4.0), (True, 1 / (1 + math.exp(-4)))):
            sent = {k: v for k, v in body.items() if k != drop} | {"use_activation": activation}
            answer = asked.post(route, json=sent).json()
            assert (answer.get("data") or answer["results"])[0][name] == expected


NIM = {"model": "rm", "messages": SAID}
SCORE = {"model": "rm", "queries": "q", "documents": ["a", "b"]}
RERANK = {"model": "rm", "query": "q", "documents": ["a", "b"]}


@pytest.mark.parametrize(
    ("route", "body", "status", "code", "param"),
    [
        ("score", {**SCORE, "documents": ["a", ""]}, 400, "empty_response", "documents[1]"),
        ("score", {**SCORE, "queries": ["p", "q"], "documents": ["a", ""]}, 400, "empty_response", "documents[1]"),
        ("score", {**SCORE, "documents": ""}, 400, "empty_response", "documents"),
        ("score", {"model": "rm", "text_1": "q", "text_2": ["nan"]}, 500, "non_finite_score", "text_2[0]"),
        ("score", {**SCORE, "documents": ["a", "long"]}, 400, "context_length_exceeded", "documents[1]"),
        ("score", {**SCORE, "documents": ["a", "broken"]}, 503, "backend_error", "documents[1]"),
        ("score", {**SCORE, "documents": ["broken"]}, 503, "backend_unavailable", None),
        ("score", {**SCORE, "documents": ["a"] * 5}, 413, "too_many_items", "documents"),
        ("score", {**SCORE, "documents": []}, 400, "invalid_request", "documents"),
        ("score", {**SCORE, "documents": ["a", 3]}, 400, "invalid_request", "documents[1]"),
        ("score", {**SCORE, "queries": []}, 400, "invalid_request", "queries"),
        ("score", {**SCORE, "queries": ["a", "b", "c"]}, 400, "invalid_request", "queries"),
        ("score", {"model": "rm", "text_1": ["a", "b"], "text_2": "c"}, 400, "invalid_request", "text_1"),
        ("score", {**SCORE, "text_1": "q"}, 400, "invalid_request", None),
        ("score", {"model": "rm", "queries": "q", "text_2": "a"}, 400, "invalid_request", None),
        ("score", {"model": "rm"}, 400, "invalid_request", None),
        ("score", {**SCORE, "items": ["a"]}, 400, "unknown_field", "items"),
        ("score", {**SCORE, "truncation": "left"}, 400, "unknown_field", "truncation"),
        ("score", {**SCORE, "truncate_prompt_tokens": 9}, 400, "unsupported_parameter", "truncate_prompt_tokens"),
        ("score", {**SCORE, "model": "chat"}, 400, "invalid_request", "model"),
        ("score", {**SCORE, "model": "none"}, 404, "model_not_found", "model"),
        ("rerank", {**RERANK, "documents": ["a", ""]}, 400, "empty_response", "documents[1]"),
        ("rerank", {**RERANK, "documents": ["a", {"text": "nan"}]}, 500, "non_finite_score", "documents[1]"),
        ("rerank", {**RERANK, "documents": []}, 400, "invalid_request", "documents"),
        ("rerank", {**RERANK, "documents": "a"}, 400, "invalid_request", "documents"),
        ("rerank", {**RERANK, "documents": ["a", 3]}, 400, "invalid_request", "documents[1]"),
        ("rerank", {**RERANK, "documents": [{"text": "a", "title": "b"}]}, 400, "unknown_field", "documents[0].title"),
        ("rerank", {**RERANK, "documents": ["a"] * 5}, 413, "too_many_items", "documents"),
        ("rerank", {**RERANK, "query": ["q"]}, 400, "invalid_request", "query"),
        ("rerank", {**RERANK, "top_n": -1}, 400, "invalid_request", "top_n"),
        ("rerank", {**RERANK, "top_n": 1.5}, 400, "invalid_request", "top_n"),
        ("rerank", {**RERANK, "max_tokens_per_doc": 9}, 400, "unsupported_parameter", "max_tokens_per_doc"),
        ("rerank", {**RERANK, "relevant_spans": {}}, 400, "unsupported_parameter", "relevant_spans"),
        ("rerank", {**RERANK, "rank_fields": ["text"]}, 400, "unsupported_parameter", "rank_fields"),
        ("rerank", {**RERANK, "priority": 1}, 400, "unsupported_parameter", "priority"),
        ("rerank", {**RERANK, "model": "chat"}, 400, "invalid_request", "model"),
        ("chat/completions", {**NIM, "messages": USER}, 400, "invalid_roles", "messages"),
        ("chat/completions", {**NIM, "messages": SAID[1:]}, 400, "invalid_roles", "messages"),
        (
            "chat/completions",
            {**NIM, "messages": [*USER, {**SAID[1], "content": ""}]},
            400,
            "empty_response",
            "messages",
        ),
        (
            "chat/completions",
            {**NIM, "messages": [*USER, {**SAID[1], "content": "nan"}]},
            500,
            "non_finite_score",
            "messages",
        ),
        ("chat/completions", {**NIM, "stream": True}, 400, "unsupported_parameter", "stream"),
        ("chat/completions", {**NIM, "n": 2}, 400, "unsupported_parameter", "n"),
        (
            "chat/completions",
            {**NIM, "logprobs": True, "top_logprobs": 2},
            400,
            "unsupported_parameter",
            "top_logprobs",
        ),
        ("chat/completions", {**NIM, "temperature": 9}, 400, "invalid_request", "temperature"),
    ],
    ids=lambda value: repr(value)[:70],
)
def test_requests_that_are_refused(route, body, status, code, param):
    answer = client().post(f"/v1/{route}", json=body)
    refused(answer, status, code, param)
    assert answer.json()["error"]["param"] == param


def test_settings_that_cannot_change_a_score_are_accepted_and_not_used():
    habits = {
        "max_tokens": 8,
        "temperature": 0.7,
        "top_p": 0.9,
        "n": 1,
        "stop": ["x"],
        "seed": 3,
        "stream": False,
        "logprobs": True,
        "presence_penalty": 1,
        "frequency_penalty": 1,
        "user": "u",
    }
    asked = client()
    plain, with_habits = (asked.post("/v1/chat/completions", json={**NIM, **more}).json() for more in ({}, habits))
    assert with_habits["choices"] == plain["choices"]


def test_a_score_within_the_deadline_of_scoring():
    class Slow(ScriptedReward):
        async def score(self, conversations, *, truncation):
            import asyncio

            await asyncio.sleep(5)

    asked = client(ScriptedChat(), Slow(), limits=LIMITS.model_copy(update={"deadline_s": 0.1}))
    for route, body in (("score", SCORE), ("rerank", RERANK), ("chat/completions", NIM)):
        refused(asked.post(f"/v1/{route}", json=body), 408, "deadline_exceeded")
