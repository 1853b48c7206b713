"""Models behind handles: seats, patience, and what a failed call means; the handles here are scripts.

Real ones, and real deaths of replicas, are in tests/serving/test_faults.py.
"""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from fusion.rows import Message
from scripted_service import card
from serving import handles
from serving.backends import Scored
from serving.config import RewardModel, RewardPlacement
from serving.errors import ApiError
from serving.telemetry import QUEUE, InMemory

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


def backend(*calls, telemetry=None, **placement):
    model = RewardModel.model_construct(placement=RewardPlacement(**placement))
    return handles.ScorerBackend(card("rm", "reward"), model, Handle(*calls), on_gpu=False, telemetry=telemetry)


def score(model):
    return asyncio.run(model.score(PAIR, truncation="error"))


DIED = ActorDiedError()


def test_a_score_whose_replica_died_is_asked_for_again():
    model = backend(Call(DIED), Call(DIED), Call([Scored(0.5, 3)]))
    assert score(model)[0].score == 0.5
    assert len(model._handle.asked) == 3
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


@pytest.mark.parametrize(("lately", "code"), [(True, "overloaded"), (False, "backend_unavailable")])
def test_a_request_that_no_replica_takes_is_refused_within_seconds(lately, code, monkeypatch):
    monkeypatch.setattr(handles, "TAKEN_WITHIN_S", 0.1)
    call = Call([Scored(1.0, 3)], taken=False)
    telemetry = InMemory()
    model = backend(call, telemetry=telemetry)
    if lately:
        model._answered()
    with pytest.raises(ApiError) as raised:
        score(model)
    assert (raised.value.code, call.cancelled) == (code, True)
    assert telemetry.value(QUEUE, model="rm") == 0


def test_who_finds_no_seat_is_refused_at_once():
    """Two replicas take 2 x 1 each, and one may wait: five seats."""

    async def run():
        release = asyncio.Event()
        model = backend(*[Call(release)] * 6, replicas=2, max_batch_requests=1, max_queued_requests=1)
        assert model.seats == 5
        tasks = [asyncio.create_task(model.score(PAIR, truncation="error")) for _ in range(5)]
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="too many waiting"):
            await model.score(PAIR, truncation="error")
        assert len(model._handle.asked) == 5
        release.set()
        await asyncio.gather(*tasks)
        assert (await model.score(PAIR, truncation="error"))[0].score == 1.0

    asyncio.run(run())


@pytest.mark.parametrize(("fronts", "seats"), [(1, 9), (2, 5), (3, 4)])
def test_fronts_share_what_replicas_take(fronts, seats):
    """Two replicas that take 4 each: 8, and a queue of 1 per front."""
    placement = RewardPlacement(replicas=2, max_batch_requests=2, max_queued_requests=1)
    assert placement.seats(4, 1, fronts=fronts) == seats
