"""The hand corpus over a real socket: each raw request gets its status and code, and the service lives on."""

import collections

import httpx
import pytest

from corpus_check import cases, check
from live import serve
from scripted_service import ScriptedChat, ScriptedReward
from serving.app import build_app
from serving.backends import Scored
from serving.config import Limits


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


def test_the_corpus(url):
    every = cases()
    counts = collections.Counter(status for case in every for status, _ in case.answers[:1])
    print(f"\n{len(every)} raw requests, by the status expected first: {dict(sorted(counts.items()))}")
    assert len(every) >= 120
    assert len({case.name for case in every}) == len(every)
    wrong = [problem for case in every for problem in check(case, url, "chat", "rm")]
    assert not wrong, "\n".join(wrong)
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
