"""The service against its own OpenAPI document: schemathesis makes requests from it, right ones and wrong ones.

Right requests must be answered with 2xx and the stated shape, wrong ones must be refused with a stated status; no
request may end in a server error. Everything is derandomised, so a run can be repeated.
"""

import collections
import hashlib
import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation

from scripted_service import ScriptedChat, ScriptedReward
from serving.app import build_app
from serving.auth import ApiKey, Guard, hash_key
from serving.backends import Scored
from serving.config import Limits
from serving.edge import Observers
from serving.errors import STATUS, error_type

LIMITS = Limits()
FAST_CASES, ALL_CASES = 200, 2000
KEY = "fl-" + "k" * 40
BEARER = {"Authorization": f"Bearer {KEY}"}
COUNTS: dict[str, collections.Counter[tuple[str, str, int]]] = collections.defaultdict(collections.Counter)
"""Per test: how many cases of (operation, positive or negative, status) there were."""


class Even(ScriptedReward):
    """Scores whatever it is given, as a sound model does."""

    async def score(self, conversations, *, truncation):
        return [Scored(1.5, 3, objectives={"a": 1.0}) for _ in conversations]


def roomy(backend):
    backend.card = backend.card.model_copy(update={"max_tokens": 1 << 30})
    return backend


def document(mode: GenerationMode, *, coverage: bool, keyed: bool = False) -> Any:
    """Return the service's document as schemathesis reads it, with or without its list of boundary values.

    Right and wrong requests are made by two documents: left to choose, hypothesis makes 36 to 4 of one operation.
    """
    keys = [ApiKey(name="k", sha256=hash_key(KEY), scopes=("chat", "reward"))] if keyed else []
    app = build_app(
        chats={"chat": roomy(ScriptedChat())},
        rewards={"rm": Even()},
        limits=LIMITS,
        not_ready=lambda: None,
        observers=Observers(Guard(keys)),
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=BEARER if keyed else {})
    schema.config.generation.modes = [mode]
    schema.config.phases.coverage.enabled = coverage
    schema.config.max_stream_events = 10_000  # streams are read to their end
    checks = schema.config.checks
    # By default 404 and 5xx are good answers to a right request, and 413 is none to a wrong one (65 items).
    checks.positive_data_acceptance.expected_statuses = ["200"]
    checks.negative_data_rejection.expected_statuses = ["400", "404", "405", "413", "415"]
    return schema


def steady(examples: int) -> settings:
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
FEW_RIGHT, FEW_WRONG = document(POSITIVE, coverage=False), document(NEGATIVE, coverage=False)
FEW_KEYED = document(POSITIVE, coverage=False, keyed=True)
MANY_RIGHT, MANY_WRONG = document(POSITIVE, coverage=True), document(NEGATIVE, coverage=True)


@FEW_RIGHT.parametrize()
@steady(20)
def test_some_right_requests(case):
    ask(case, COUNTS["some"])


@FEW_WRONG.parametrize()
@steady(20)
def test_some_wrong_requests(case):
    ask(case, COUNTS["some"])


@FEW_KEYED.parametrize()
@steady(5)
def test_some_right_requests_with_a_key(case):
    """Where the document asks for a key, schemathesis sends the request again without one and with a wrong one."""
    ask(case, COUNTS["keyed"], headers=BEARER)
    assert COUNTS["keyed"][case.operation.label, "positive", 200]


@pytest.mark.serving
@MANY_RIGHT.parametrize()
@steady(125)
def test_many_right_requests(case):
    ask(case, COUNTS["many"])


@pytest.mark.serving
@MANY_WRONG.parametrize()
@steady(125)
def test_many_wrong_requests(case):
    ask(case, COUNTS["many"])


@pytest.mark.parametrize(
    ("test", "least"), [("some", FAST_CASES), pytest.param("many", ALL_CASES, marks=pytest.mark.serving)]
)
def test_there_were_enough_cases(test, least):
    """Last: every route had right and wrong requests, and right ones were not just refused."""
    counts = COUNTS[test]
    modes = collections.Counter()
    for (_, mode, _), count in counts.items():
        modes[mode] += count
    print(f"\n{sum(modes.values())} requests made from the document: {dict(modes)}")
    for key, count in sorted(counts.items()):
        print(f"  {count:5}  {' '.join(map(str, key))}")
    assert sum(modes.values()) >= least
    assert min(modes["positive"], modes["negative"]) >= least // 4
    posts = {operation for operation, _, _ in counts if operation.startswith("POST")}
    assert len(posts) == 5
    for operation in posts:
        assert counts[operation, "positive", 200] >= least // 40
        assert counts[operation, "negative", 400] >= least // 40


def ask(case: Any, counts: collections.Counter[tuple[str, str, int]], *, headers: dict[str, str] | None = None) -> None:
    mode = case.meta.generation.mode
    if mode == GenerationMode.POSITIVE and isinstance(case.body, dict):
        case.body = lawful(case.body, case.operation.path)
        if "idempotency-key" in case.headers:
            case.headers["idempotency-key"] = of_this_body(case.headers["idempotency-key"], case.body)
    elif case.meta.is_negative_at(ParameterLocation.BODY) or "content-type" in case.headers:
        case.headers.pop("idempotency-key", None)  # looked at first, a wrong one would hide the wrong body
    answer = case.call(headers=headers)
    counts[case.operation.label, mode.value, answer.status_code] += 1
    case.validate_response(answer, headers=headers)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert (answer.status_code, error_type(answer.status_code)) == (STATUS[error["code"]], error["type"])
    elif answer.headers["content-type"][0].startswith("text/event-stream"):
        *events, last, end = answer.text.split("\n\n")
        assert (last, end) == ("data: [DONE]", "")
        assert {json.loads(event.removeprefix("data: "))["object"] for event in events} == {"chat.completion.chunk"}


# ---- rules that a JSON schema cannot state ----------------------------------------------------


def lawful(body: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a body of the right form with what is left to right: roles, ids, pairs, things that need each other."""
    match path:
        case "/v1/chat/completions":
            return _lawful_chat(body)
        case "/v1/rewards":
            items = [_lawful_item(item, i) for i, item in enumerate(body["input"][:8])]
            return {**body, "input": items, "allow_empty": True}
        case "/v1/score":
            return _lawful_score(body)
        case _:
            texts = [{"text": d["text"] or "-"} if isinstance(d, dict) else d or "-" for d in body["documents"]]
            return {**body, "documents": texts}


def of_this_body(key: str, body: dict[str, Any]) -> str:
    """Return an idempotency key that no other body has; one of 255 characters keeps its length."""
    return (hashlib.sha256(json.dumps(body).encode()).hexdigest() + key)[:255]


def _lawful_chat(body: dict[str, Any]) -> dict[str, Any]:
    scored = body["model"] == "rm"
    body = {**body, "messages": _turns(body["messages"], last="assistant" if scored else "user")}
    if body.get("max_tokens") is not None:
        body = {**body, "max_tokens": min(body["max_tokens"], LIMITS.max_tokens), "max_completion_tokens": None}
    if body.get("max_completion_tokens") is not None:
        body = {**body, "max_completion_tokens": min(body["max_completion_tokens"], LIMITS.max_tokens)}
    if scored:
        body = {**body, "stream": False, "n": 1, "top_logprobs": None}
    if not body.get("stream"):
        body = {**body, "stream_options": None}
    if not body.get("logprobs"):
        body = {**body, "top_logprobs": None}
    return body


def _turns(messages: list[dict[str, Any]], *, last: str) -> list[dict[str, Any]]:
    first = [] if last == "user" else [{"role": "user", "content": "q"}]
    kept = [turn for turn in messages if turn["role"] != "system"]
    return [*first, *kept[: 1024 - 2], {"role": last, "content": messages[-1]["content"] or "-"}]


def _lawful_item(item: dict[str, Any], position: int) -> dict[str, Any]:
    if item.get("id") is not None:
        item = {**item, "id": f"{position}{item['id']}"[:128]}
    if item.get("messages") is not None:
        return {**item, "messages": _turns(item["messages"], last="assistant")}
    if item.get("responses") is not None:
        return {**item, "responses": item["responses"][:8]}
    return item


def _lawful_score(body: dict[str, Any]) -> dict[str, Any]:
    query, document = ("queries", "documents") if body.get("queries") is not None else ("text_1", "text_2")
    texts = body[document]
    texts = [text or "-" for text in texts] if isinstance(texts, list) else texts or "-"
    queries = body[query]
    if isinstance(queries, list):
        queries = (queries * 64)[: len(texts) if isinstance(texts, list) else 1]
    return {**body, query: queries, document: texts}
