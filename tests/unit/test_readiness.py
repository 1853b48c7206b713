"""When a service is ready: scripted models that load, answer, fail, and turn a canary around."""

import asyncio
import math

import pytest

from fusion.rewards import Canary
from scripted_service import ScriptedChat, card
from serving.backends import Scored
from serving.errors import ApiError
from serving.readiness import Readiness, Refused, ask_chat, ask_reward, probes

CANARY = Canary(prompt="2+2?", better="4", worse="5")


class Reward:
    """Scores by a table from answer to score; a callable is called, an exception is raised."""

    def __init__(self, **scores):
        self.card = card("rm", "reward")
        self.scores = {name.removeprefix("_"): score for name, score in scores.items()}
        self.calls = []

    async def score(self, conversations, *, truncation):
        self.calls.append((tuple(c[-1].content for c in conversations), truncation))
        found = []
        for conversation in conversations:
            score = self.scores.get(conversation[-1].content, 0.0)
            if isinstance(score, Exception):
                raise score
            found.append(score if isinstance(score, Scored) else Scored(score, 3))
        return found


def run(coroutine):
    return asyncio.run(coroutine)


def test_a_canary_in_order_is_scored_in_one_call_and_uncut():
    reward = Reward(_4=1.0, _5=-1.0)
    run(ask_reward(reward, CANARY))
    assert reward.calls == [(("4", "5"), "error")]


@pytest.mark.parametrize(
    ("better", "worse", "said"),
    [
        (-1.0, 1.0, "wrong order: better scores -1, worse 1"),
        (1.0, 1.0, "wrong order"),
        (math.nan, 1.0, "the better answer of its canary has a score that is not a finite number"),
        (1.0, -math.inf, "the worse answer"),
        (Scored(None, 99, error_code="context_length_exceeded", error_message="99 tokens > 64"), 0.0, "99 tokens > 64"),
    ],
)
def test_a_canary_out_of_order_is_refused_with_the_reason(better, worse, said):
    with pytest.raises(Refused, match=said):
        run(ask_reward(Reward(_4=better, _5=worse), CANARY))


def test_without_a_canary_one_finite_score_is_asked_for():
    run(ask_reward(Reward(), None))
    nan = Reward()
    nan.scores = {"Hello, how can I help?": math.nan}
    with pytest.raises(Refused, match="finite"):
        run(ask_reward(nan, None))


def test_a_backend_that_fails_is_not_refused_but_awaited():
    failing = Reward(_4=Scored(None, 0, error_code="backend_error", error_message="out of memory"))
    with pytest.raises(ApiError, match="reward model failed"):
        run(ask_reward(failing, CANARY))


def test_the_warm_up_is_a_stream_read_to_its_end():
    chat = ScriptedChat()
    run(ask_chat(chat))
    assert (chat.asked[0].max_tokens, chat.closed) == (2, 1)


async def states(readiness, until, *, timeout_s=5.0):
    """Collect what `not_ready` says, without repeats, until it says `until`."""
    seen = [readiness.not_ready()]
    async with asyncio.timeout(timeout_s):
        while not until(seen[-1]):
            await asyncio.sleep(0.002)
            if readiness.not_ready() != seen[-1]:
                seen.append(readiness.not_ready())
    return seen


def watch(asked, **options):
    return Readiness(asked, **{"recheck_s": 60, "pause_s": 0.01, "timeout_s": 0.1, **options})


def test_ready_once_every_model_has_answered():
    async def main():
        loaded = asyncio.Event()
        chat = ScriptedChat()
        readiness = watch({**probes({"chat": chat}, {"rm": Reward(_4=1.0)}, {"rm": CANARY}), "slow": loaded.wait})
        assert readiness.not_ready() == "chat is loading; rm is loading; slow is loading"
        readiness.start()
        assert (await states(readiness, lambda said: said == "slow is loading"))[-1] == "slow is loading"
        # A model that takes longer than one question's patience is still loading.
        await asyncio.sleep(0.15)
        assert readiness.not_ready() == "slow is loading"
        loaded.set()
        await asyncio.wait_for(readiness.settled(), 5)
        assert (readiness.not_ready(), readiness.refused) == (None, None)
        await readiness.stop()

    run(main())


def test_a_refused_model_settles_at_once_and_recovers_when_it_is_right_again():
    async def main():
        reward = Reward(_4=-1.0, _5=1.0)
        readiness = watch(probes({}, {"rm": reward}, {"rm": CANARY}))
        readiness.start()
        await asyncio.wait_for(readiness.settled(), 5)
        assert readiness.refused == readiness.not_ready()
        assert "rm is refused: its canary pair is in the wrong order" in str(readiness.refused)
        reward.scores["4"] = 2.0  # the replica was replaced by a sound one
        await states(readiness, lambda said: said is None)
        assert readiness.refused is None
        await readiness.stop()

    run(main())


def test_a_canary_that_turns_makes_the_service_unready():
    async def main():
        reward = Reward(_4=1.0, _5=-1.0)
        readiness = watch(probes({}, {"rm": reward}, {"rm": CANARY}), recheck_s=0.02)
        readiness.start()
        await asyncio.wait_for(readiness.settled(), 5)
        reward.scores["4"] = -2.0
        assert "wrong order" in str((await states(readiness, lambda said: said is not None))[-1])
        await readiness.stop()

    run(main())


def test_a_ready_model_with_a_full_queue_stays_ready_and_a_dead_one_does_not():
    async def main():
        fate = []
        calls = []

        async def probe():
            calls.append(len(fate))
            if fate:
                raise fate[-1]

        readiness = watch({"m": probe}, recheck_s=0.01)
        readiness.start()
        await asyncio.wait_for(readiness.settled(), 5)
        fate.append(ApiError("overloaded", "full"))
        while calls.count(1) < 3:
            await asyncio.sleep(0.005)
        assert readiness.not_ready() is None
        fate.append(ApiError("backend_unavailable", "gone"))
        assert (await states(readiness, bool))[-1] == "m is not answering (backend_unavailable)"
        assert readiness.refused is None
        fate.append(RuntimeError("a bug"))
        await states(readiness, lambda said: said == "m fails its warm-up (RuntimeError)")
        fate.clear()
        await states(readiness, lambda said: said is None)
        await readiness.stop()

    run(main())


def test_a_model_that_hangs_after_it_was_ready_is_named():
    async def main():
        hangs = asyncio.Event()

        async def probe():
            if hangs.is_set():
                await asyncio.sleep(60)

        readiness = watch({"m": probe}, recheck_s=0.01)
        readiness.start()
        await asyncio.wait_for(readiness.settled(), 5)
        hangs.set()
        assert (await states(readiness, bool))[-1] == "m is not answering (nothing within 0.1 s)"
        await readiness.stop()

    run(main())
