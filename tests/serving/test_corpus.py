"""The hand corpus over a real socket: each raw request gets its status and code, and the service lives on."""

import collections
import json

import httpx
import pytest

import corpus
import corpus_fields
from corpus import PLAIN, Case
from live import serve
from raw import Answer, ask
from scripted_service import ScriptedChat, ScriptedReward
from serving.app import build_app
from serving.backends import Scored
from serving.config import Limits
from serving.errors import STATUS
from serving.schemas import ErrorEnvelope


class Reader(ScriptedReward):
    """Scores like the scripted reward, and finds long conversations too long, as a real model does."""

    async def score(self, conversations, *, truncation):
        long = [sum(len(turn.content) for turn in c) > 4096 for c in conversations]
        refused = Scored(None, 9999, error_code="context_length_exceeded", error_message="9999 tokens > 64")
        return [
            refused if too_long and truncation == "error" else Scored(1.0, 5, truncated=too_long) for too_long in long
        ]


@pytest.fixture(scope="module", params=["httptools", pytest.param("h11", marks=pytest.mark.serving)])
def url(request):
    chat = ScriptedChat()
    chat.card = chat.card.model_copy(update={"max_tokens": 512})
    app = build_app(chats={"chat": chat}, rewards={"rm": Reader()}, limits=Limits(), not_ready=lambda: None)
    with serve(app, parser=request.param) as url:
        yield url


def check(case: Case, url: str, chat: str, reward: str) -> list[str]:
    """Ask a service for one case and return what is wrong with its answers; needs no knowledge of the service."""
    methods = [*case.methods]
    answers = ask(url, case.request(chat, reward), methods=methods)
    told = tuple((answer.status, _code(answer)) for answer in answers)
    wrong = []
    if (told != case.answers) if case.pipelined else (len(told) != 1 or told[0] not in case.answers):
        wrong.append(
            f"{case.name}: answered {told}, expected {case.answers}: {answers[0].body[:200] if answers else ''}"
        )
    for answer in answers:
        wrong += [f"{case.name}: {problem}" for problem in _problems(answer)]
    if case.item is not None and not wrong:
        first = json.loads(answers[0].body)["results"][0]
        if (first["status"], first["score"], first["error"]["code"]) != ("error", None, case.item):
            wrong.append(f"{case.name}: the first item is {first}, expected {case.item}")
    return wrong


def _code(answer: Answer) -> str | None:
    if answer.status < 400:
        return None
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return PLAIN
    return json.loads(answer.body)["error"]["code"] if answer.body else None


def _problems(answer: Answer) -> list[str]:
    """Return what is wrong with an answer of the service itself, whatever it was asked."""
    if answer.status >= 400 and _code(answer) == PLAIN:
        return []
    problems = []
    if len(answer.headers.get_all("x-request-id") or []) != 1:
        problems.append("it does not have one x-request-id")
    if answer.status >= 400 and answer.body:
        error = ErrorEnvelope.model_validate_json(answer.body).error
        if STATUS[error.code] != answer.status:
            problems.append(f"{error.code} came with {answer.status}")
        if "Traceback" in error.message or "/site-packages/" in error.message:
            problems.append("its message shows the server's inside")
    if answer.status == 405 and not answer.headers.get("allow"):
        problems.append("405 without allow")
    return problems


def cases() -> list[Case]:
    """Return both halves of the corpus."""
    http = (corpus.sound, corpus.bodies, corpus.framing, corpus.media, corpus.paths, corpus.methods, corpus.heads)
    fields = (corpus_fields.chat, corpus_fields.rewards, corpus_fields.aliases, corpus_fields.texts)
    return [case for part in (*http, *fields) for case in part()]


def test_the_corpus(url):
    every = cases()
    counts = collections.Counter(status for case in every for status, _ in case.answers[:1])
    print(f"\n{len(every)} raw requests, by the status expected first: {dict(sorted(counts.items()))}")
    assert len(every) >= 120
    assert len({case.name for case in every}) == len(every)
    wrong = [problem for case in every for problem in check(case, url, "chat", "rm")]
    assert not wrong, "\n".join(wrong)
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
