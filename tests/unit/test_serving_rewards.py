"""The reward endpoint without Ray: which items are refused, and scores in order with each error at its item.

The engines here are scripts; real ones are in tests/e2e/test_serve.py.
"""

import math

import pytest

from scripted_service import USER, ScriptedReward, client, refused
from serving.backends import Scored

GOOD = {"prompt": "2+2?", "response": "four"}


def rewards(*items, reward=None, **fields):
    return client(reward=reward).post("/v1/rewards", json={"model": "rm", "input": list(items), **fields})


@pytest.mark.parametrize(
    ("items", "fields", "status", "code", "param"),
    [
        ([], {}, 400, "invalid_request", "input"),
        ([GOOD] * 5, {}, 413, "too_many_items", "input"),
        ([{"prompt": "a", "responses": ["b"] * 5}], {}, 413, "too_many_items", "input"),
        ([{}], {}, 400, "invalid_request", "input[0]"),
        ([{"prompt": "a"}], {}, 400, "invalid_request", "input[0]"),
        ([{"response": "a"}], {}, 400, "invalid_request", "input[0]"),
        ([{"prompt": "a", "response": "b", "responses": ["c"]}], {}, 400, "invalid_request", "input[0]"),
        ([GOOD, {**GOOD, "messages": USER}], {}, 400, "invalid_request", "input[1]"),
        ([{"prompt": "a", "responses": []}], {}, 400, "invalid_request", "input[0].responses"),
        ([{"prompt": "a", "responses": [3]}], {}, 400, "invalid_request", "input[0].responses[0]"),
        ([{"prompt": 1, "response": "b"}], {}, 400, "invalid_request", "input[0].prompt"),
        ([{**GOOD, "id": 3}], {}, 400, "invalid_request", "input[0].id"),
        ([{**GOOD, "id": "x" * 129}], {}, 400, "invalid_request", "input[0].id"),
        ([{**GOOD, "id": ""}], {}, 400, "invalid_request", "input[0].id"),
        ([{**GOOD, "id": "x"}, {**GOOD, "id": "x"}], {}, 400, "invalid_request", "input[0].id"),
        ([{**GOOD, "weight": 1}], {}, 400, "unknown_field", "input[0].weight"),
        ([GOOD], {"truncation": "middle"}, 400, "invalid_request", "truncation"),
        ([GOOD], {"on_error": "ignore"}, 400, "invalid_request", "on_error"),
        ([GOOD], {"return": ["logits"]}, 400, "invalid_request", "return[0]"),
        ([GOOD], {"return_": ["objectives"]}, 400, "unknown_field", "return_"),
        ([GOOD], {"model": "none"}, 404, "model_not_found", "model"),
        ([GOOD], {"model": "chat"}, 400, "invalid_request", "model"),
        ([{**GOOD, "response": ""}], {"on_error": "fail"}, 400, "empty_response", "input[0]"),
        ([GOOD, {**GOOD, "response": "long"}], {"on_error": "fail"}, 400, "context_length_exceeded", "input[1]"),
        ([GOOD, {**GOOD, "response": "nan"}], {"on_error": "fail"}, 500, "non_finite_score", "input[1]"),
        ([{**GOOD, "response": "broken"}] * 2, {}, 503, "backend_unavailable", None),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_scoring_requests_that_are_refused(items, fields, status, code, param):
    refused(rewards(*items, **fields), status, code, param)


def test_scores_in_order_and_each_error_with_its_item():
    reward = ScriptedReward()
    answer = rewards(
        {"id": "a", "messages": [*USER, {"role": "assistant", "content": "four"}]},
        {"id": "b", "prompt": "q", "responses": ["nan", ""]},
        {"prompt": "q", "response": "long"},
        reward=reward,
        truncation="left",
    )
    body = answer.json()
    assert [(r["index"], r.get("response_index"), r["id"], r["status"], r["score"]) for r in body["results"]] == [
        (0, None, "a", "ok", 4.0),
        (1, 0, "b", "error", None),
        (1, 1, "b", "error", None),
        (2, None, None, "error", None),
    ]
    assert [(r["error"]["code"], r["error"]["param"]) for r in body["results"][1:]] == [
        ("non_finite_score", "input[1].responses[0]"),
        ("empty_response", "input[1].responses[1]"),
        ("context_length_exceeded", "input[2]"),
    ]
    assert "error" not in body["results"][0]
    assert body["summary"] == {"ok": 1, "error": 3}
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (body["model_revision"], body["scorer"]["dtype"]) == ("r1", "float32")
    ((conversations, truncation),) = reward.calls
    assert (len(conversations), truncation) == (3, "left")


def test_a_conversation_that_does_not_end_with_the_assistant_has_its_own_error():
    results = rewards({"messages": USER}, GOOD).json()["results"]
    assert [r["status"] for r in results] == ["error", "ok"]
    assert results[0]["error"]["code"] == "invalid_roles"


def test_empty_responses_sigmoid_and_objectives_when_asked_for():
    results = rewards(
        {**GOOD, "response": ""}, GOOD, allow_empty=True, normalize="sigmoid", **{"return": ["objectives"]}
    ).json()["results"]
    assert results[0]["score"] == 0.5
    assert math.isclose(results[1]["score"], 1 / (1 + math.exp(-4)))
    assert results[1]["objectives"] == {"length": 1.0}
    assert rewards(GOOD).json()["results"][0]["objectives"] is None


class Fated(ScriptedReward):
    """Gives every response the item error that it names; `ok` is scored."""

    async def score(self, conversations, *, truncation):
        codes = [c[-1].content for c in conversations]
        return [Scored(1.0, 3) if c == "ok" else Scored(None, 0, error_code=c, error_message="m") for c in codes]


@pytest.mark.parametrize(
    ("fates", "told"),
    [
        (["ok", "deadline_exceeded"], [None, "deadline_exceeded"]),
        (["ok", "backend_error"], [None, "backend_error"]),
        (["ok", "scorer_error"], [None, "backend_error"]),  # a code of the pipeline that clients do not know
        (["context_length_exceeded", "backend_error"], ["context_length_exceeded", "backend_error"]),
        (["context_length_exceeded"] * 2, ["context_length_exceeded"] * 2),
        (["backend_error", "scorer_error"], "backend_unavailable"),
        (["backend_error", "deadline_exceeded"], "backend_unavailable"),
        (["deadline_exceeded"] * 2, "deadline_exceeded"),
    ],
)
def test_items_that_the_backend_fails_and_when_that_is_the_whole_request(fates, told):
    answer = rewards({"prompt": "q", "responses": fates}, reward=Fated())
    if isinstance(told, str):
        refused(answer, 408 if told == "deadline_exceeded" else 503, told)
    else:
        assert [(r.get("error") or {}).get("code") for r in answer.json()["results"]] == told


def test_an_objective_that_is_not_finite_is_a_score_that_is_not_finite():
    class Odd(ScriptedReward):
        async def score(self, conversations, *, truncation):
            return [Scored(1.0, 3, objectives={"a": value}) for value in (math.inf, 2.0)]

    first, second = rewards(GOOD, GOOD, reward=Odd(), **{"return": ["objectives"]}).json()["results"]
    assert (first["score"], first["error"]["code"]) == (None, "non_finite_score")
    assert second["objectives"] == {"a": 2.0}
