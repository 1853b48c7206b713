"""The HTTP front of the service over engines that are scripts; real ones are in tests/e2e/test_serve.py."""

import asyncio
import math

from fastapi.testclient import TestClient

from serving.app import build_app
from serving.backends import Delta, SampledToken, Scored
from serving.config import Limits
from serving.errors import ApiError
from serving.schemas import ErrorEnvelope, ModelCard

USER = [{"role": "user", "content": "hi"}]
LIMITS = Limits(chat_body_bytes=4096, rewards_body_bytes=4096, max_reward_items=4, max_tokens=40, deadline_s=2)


def card(name, kind):
    return ModelCard(
        id=name,
        created=1,
        kind=kind,
        revision="r1",
        max_tokens=64,
        dtype="float32",
        template_sha256="t",
        determinism="d",
    )


class ScriptedChat:
    """Answers with the letters of `script`, one piece per letter."""

    def __init__(self, script="abc", *, fails=None, delay_s=0.0):
        self.card = card("chat", "chat")
        self.stop_token_ids = (2,)
        self.script, self.fails, self.delay_s = script, fails, delay_s
        self.asked, self.closed = [], 0

    def encode(self, messages):
        if "unrenderable" in messages[-1].content:
            raise ValueError("the template refuses it")
        return [1] * sum(len(message.content) for message in messages)

    def token_text(self, token_id):
        return "\ufffd" if token_id > 255 else chr(token_id)

    async def generate(self, generation):
        self.asked.append(generation)
        try:
            for place, letter in enumerate(self.script[: generation.max_tokens]):
                await asyncio.sleep(self.delay_s)
                if self.fails == place:
                    raise ApiError("backend_unavailable", "the engine failed")
                tokens = ()
                if generation.num_logprobs is not None:
                    tokens = (SampledToken(ord(letter), -0.5, ((ord(letter), -0.5), (300, -math.inf))),)
                last = place + 1 == min(len(self.script), generation.max_tokens)
                reason = ("stop" if last and place + 1 == len(self.script) else "length") if last else None
                yield [Delta(i, letter, 1, reason, tokens) for i in range(generation.n)]
        finally:
            self.closed += 1


class ScriptedReward:
    """Scores a conversation with the length of its response; some responses have their own fate."""

    def __init__(self):
        self.card = card("rm", "reward")
        self.calls = []

    async def score(self, conversations, *, truncation):
        self.calls.append((conversations, truncation))
        fates = {
            "nan": Scored(math.nan, 3),
            "long": Scored(None, 99, error_code="context_length_exceeded", error_message="99 tokens > 64"),
            "broken": Scored(None, 0, error_code="backend_error", error_message="out of memory"),
        }
        return [
            fates.get(c[-1].content, Scored(float(len(c[-1].content)), 5, objectives={"length": 1.0}))
            for c in conversations
        ]


def client(chat=None, reward=None, *, limits=LIMITS, awaited=None):
    app = build_app(
        chats={"chat": chat or ScriptedChat()},
        rewards={"rm": reward or ScriptedReward()},
        limits=limits,
        not_ready=lambda: awaited,
    )
    return TestClient(app, raise_server_exceptions=False)


def refused(answer, status, code, param=None):
    """Check that an answer is the envelope with this status and code, and return its message."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    error = ErrorEnvelope.model_validate(answer.json()).error
    assert answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    if param is not None:
        assert error.param == param
    return error.message
