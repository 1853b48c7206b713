"""Models behind handles: when they are called, and what a failed call means; the handles here are scripts.

Real ones, and real deaths of replicas, are in tests/serving/test_faults.py.
"""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from fusion.rows import Message
from scripted_service import card
from serving import handles, line
from serving.backends import Scored
from serving.config import RewardModel, RewardPlacement
from serving.errors import ApiError

PAIR = [(Message("user", "q"), Message("assistant", "a"))]


class Call:
    """What a handle returns: `outcome` is an answer, an exception, or an event to wait for first."""

    def __init__(self, outcome, *, taken=True):
        self.outcome, self.taken, self.cancelled = outcome, taken, False

    async def _to_object_ref(self):
        if isinstance(self.outcome, BackPressureError):
            raise self.outcome
        if not self.taken:
            await asyncio.Event().wait()

    def __await__(self):
        return self._answer().__await__()

    async def _answer(self):
        if isinstance(self.outcome, asyncio.Event):
            await self.outcome.wait()
            return [Scored(1.0, 3)]
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.cancelled = True
        if isinstance(self.outcome, Exception):
            raise self.outcome  # as Ray does


class Handle:
    """A deployment handle whose calls have the outcomes of a list."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), []
        self.score = self.determinism = self

    def remote(self, *arguments):
        if not arguments:
            return Call("tried")
        self.asked.append(arguments)
        return self.calls.pop(0)


def backend(*calls, **placement):
    model = RewardModel.model_construct(placement=RewardPlacement(**placement))
    return handles.ScorerBackend(card("rm", "reward"), model, Handle(*calls), on_gpu=False)


def score(model):
    return asyncio.run(model.score(PAIR, truncation="error"))


DIED = ActorDiedError()


def test_a_score_whose_replica_died_is_asked_for_again():
    model = backend(Call(DIED), Call(DIED), Call([Scored(0.5, 3)]))
    assert score(model)[0].score == 0.5
    assert len(model.handle.asked) == 3
    assert model.card.determinism == "tried"


@pytest.mark.parametrize(
    ("calls", "code"),
    [
        ([Call(DIED)] * 3, "backend_unavailable"),
        ([Call(BackPressureError(num_queued_requests=1, max_queued_requests=1))], "overloaded"),
        ([Call(RayTaskError("f", "trace", ApiError("invalid_request", "no")))], "invalid_request"),
        ([Call(ValueError("a prompt in a message"))], "internal_error"),
    ],
)
def test_what_a_failed_call_means(calls, code, caplog):
    with pytest.raises(ApiError) as raised:
        score(backend(*calls))
    assert raised.value.code == code
    assert "a prompt in a message" not in caplog.text + raised.value.message


def test_a_call_that_no_replica_takes_is_given_up(monkeypatch):
    monkeypatch.setattr(line, "PATIENCE_S", 0.1)
    call = Call([Scored(1.0, 3)], taken=False)
    with pytest.raises(ApiError) as raised:
        score(backend(call))
    assert (raised.value.code, call.cancelled) == ("backend_unavailable", True)


def test_calls_go_to_ray_only_when_a_replica_has_a_place():
    """Two replicas take 2 x 1 each, and one may wait: five seats, four calls."""

    async def run():
        release = asyncio.Event()
        model = backend(*[Call(release)] * 6, replicas=2, max_batch_requests=1, max_queued_requests=1)
        tasks = [asyncio.create_task(model.score(PAIR, truncation="error")) for _ in range(5)]
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="too many waiting"):
            await model.score(PAIR, truncation="error")
        assert len(model.handle.asked) == 4
        release.set()
        await asyncio.gather(*tasks)
        assert (await model.score(PAIR, truncation="error"))[0].score == 1.0

    asyncio.run(run())


def test_the_queue_is_long_after_a_death():
    """One replica takes 2; 8 more may wait, and 64 while it is replaced."""
    model = backend(Call(DIED), Call([Scored(0.5, 3)]))
    assert model.line.seats == 2 + 8
    score(model)
    assert model.line.seats == 2 + 64
