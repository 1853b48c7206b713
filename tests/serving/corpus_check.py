"""The hand corpus asked of any service: what came back, against what must.

Needs a base URL and the names of a chat and a reward model, nothing else; so it can be asked of a real deployment.
"""

import json

import corpus
import corpus_fields
from corpus import PLAIN, Case
from raw import Answer, ask
from serving.errors import STATUS
from serving.schemas import ErrorEnvelope


def cases() -> list[Case]:
    """Return both halves of the corpus."""
    http = (corpus.sound, corpus.bodies, corpus.framing, corpus.media, corpus.paths, corpus.methods, corpus.heads)
    fields = (corpus_fields.chat, corpus_fields.rewards, corpus_fields.aliases, corpus_fields.texts)
    return [case for part in (*http, *fields) for case in part()]


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
    if answer.headers.get_content_type() == "text/event-stream" and not answer.body.endswith(b"data: [DONE]\n\n"):
        problems.append("its stream does not end with [DONE]")
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
