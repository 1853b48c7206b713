"""The front's own queue before a model: places, seats, order and patience."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import deadline, line
from serving.errors import ApiError
from serving.line import Line
from serving.telemetry import QUEUE, InMemory


def a_line(**given: Any) -> Line:
    defaults: dict[str, Any] = {"replicas": 1, "each": 1, "fronts": 1, "queued": 1, "queued_while_starting": 4}
    return Line("rm", **{**defaults, **given})


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(line, "PATIENCE_S", 0.1)


@pytest.mark.parametrize(("fronts", "seats"), [(1, 9), (2, 5), (3, 4)])
def test_fronts_share_what_replicas_take(fronts, seats):
    """Two replicas that take 4 each: 8, and a queue of 1 per front."""
    assert a_line(replicas=2, each=4, fronts=fronts).seats == seats


def test_the_queue_is_long_while_replicas_start_and_after_a_death(monkeypatch):
    own = a_line(replicas=2, each=4)
    assert own.seats == 8 + 1
    own.adjust(replicas=1)
    assert own.seats == 4 + 1
    own.lengthen()
    assert own.seats == 4 + 4
    own.adjust(replicas=2)
    assert own.seats == 8 + 4  # for ten more seconds
    monkeypatch.setattr(line, "STARTING_S", 0.0)
    assert own.seats == 8 + 1


def test_a_queue_is_never_shorter_while_replicas_start():
    own = a_line(queued=9, queued_while_starting=0)
    own.lengthen()
    assert own.seats == 1 + 9


def test_without_a_replica_one_is_still_asked():
    own = a_line(replicas=2, each=3)
    own.adjust(replicas=0)
    assert own.seats == 3 + 1


def test_who_finds_no_seat_is_refused_at_once_and_the_others_come_in_their_order():
    telemetry = InMemory()
    own = a_line(queued=2, telemetry=telemetry)

    async def run():
        served = []

        async def ask(number):
            async with own.place():
                served.append(number)
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(ask(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert served == [0]
        assert telemetry.value(QUEUE, model="rm") == 2
        with pytest.raises(ApiError, match="too many waiting") as raised:
            await ask(3)
        assert raised.value.code == "overloaded"
        with pytest.raises(ApiError, match="too many waiting"):
            own.check()
        await asyncio.gather(*tasks)
        assert served == [0, 1, 2]
        own.check()

    asyncio.run(run())
    assert telemetry.value(QUEUE, model="rm") == 0


@pytest.mark.parametrize(("lately", "code"), [(True, "overloaded"), (False, "backend_unavailable")])
def test_patience_ends_with_what_is_true_of_the_model(lately, code, impatient):
    telemetry = InMemory()
    own = a_line(telemetry=telemetry)

    async def run():
        async with own.place():
            if lately:
                own.answered()
            with pytest.raises(ApiError) as raised:
                async with own.place():
                    pass
            assert raised.value.code == code
        assert own.seats == 2
        async with own.place():  # the one that gave up left nothing behind
            assert telemetry.value(QUEUE, model="rm") == 0

    asyncio.run(run())


def test_who_waits_for_a_starting_replica_waits_while_others_are_answered(impatient):
    """Patience is 0.1 s; the place comes after 0.23 s, and somebody was answered at 0.05 s and 0.15 s."""
    own = a_line()

    async def run():
        own.lengthen()

        async def ask():
            async with own.place():
                return "served"

        async with own.place():
            waiting = asyncio.create_task(ask())
            for _ in range(2):
                await asyncio.sleep(0.05)
                own.answered()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.03)
            assert not waiting.done()
        assert await waiting == "served"

    asyncio.run(run())


def test_the_deadline_ends_patience_too():
    own = a_line()

    async def run():
        own.lengthen()
        own.answered()
        async with own.place():
            with pytest.raises(ApiError) as raised:
                async with deadline.within(0.1), own.place():
                    pass
        assert raised.value.code in ("deadline_exceeded", "overloaded")

    asyncio.run(asyncio.wait_for(run(), 2))


def test_what_is_waited_for_may_fail_and_is_cancelled_with_who_waits():
    own = a_line()

    async def fail():
        raise ValueError("no")

    async def run():
        with pytest.raises(ValueError, match="no"):
            await own.patiently(fail())
        never = asyncio.Event()
        task = asyncio.create_task(own.patiently(never.wait()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


STEPS = st.lists(
    st.one_of(
        st.just(("come", 0)),
        st.tuples(st.sampled_from(["leave", "cancel", "cancel and leave"]), st.integers(0, 20)),
        st.tuples(st.just("replicas"), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(steps=STEPS, each=st.integers(1, 3))
def test_places_are_never_lost_nor_given_twice(steps, each):
    """Requests come, end and are cancelled in any order, replicas come and go: there are never more at work than there
    were places when they got theirs, nobody waits beside a free place, and all get their turn."""

    async def run():
        own = a_line(each=each, queued=1000)
        at_work: dict[asyncio.Task, asyncio.Event] = {}
        tasks: list[asyncio.Task] = []
        places, most = each, each

        async def ask(release):
            async with own.place():
                me = asyncio.current_task()
                at_work[me] = release
                try:
                    assert len(at_work) <= most
                    await release.wait()
                finally:
                    del at_work[me]

        for step, value in steps:
            working = list(at_work)
            match step:
                case "come":
                    tasks.append(asyncio.create_task(ask(asyncio.Event())))
                case "leave" if working:
                    at_work[working[value % len(working)]].set()
                case "cancel" if tasks:
                    tasks[value % len(tasks)].cancel()
                case "cancel and leave" if working:  # the place is handed over to one that is cancelled
                    at_work[working[0]].set()
                    tasks[value % len(tasks)].cancel()
                case "replicas":
                    own.adjust(replicas=value)
                    places = max(1, value) * each
                    most = max(places, len(at_work))
            for _ in range(4):
                await asyncio.sleep(0)
            living = [task for task in tasks if not task.done()]
            assert len(at_work) >= min(len(living), places)
            most = max(places, len(at_work))
        while any(not task.done() for task in tasks):
            for release in at_work.values():
                release.set()
            await asyncio.sleep(0)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in ended} <= {type(None), asyncio.CancelledError}
        assert own.seats - own._queued == places
        assert own._held == own._seated == len(own._waiting) == 0

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_stream_that_is_closed_gives_its_place_back():
    own = a_line()

    async def stream():
        async with own.place():
            yield 1
            yield 2

    async def run():
        async with aclosing(stream()) as pieces:
            async for _ in pieces:
                break
        async with own.place():
            pass
        assert own._held == own._seated == 0

    asyncio.run(run())


def test_new_replicas_take_all_they_can_at_once():
    own = a_line(queued=9)

    async def run():
        release, at_work = asyncio.Event(), []

        async def ask(number):
            async with own.place():
                at_work.append(number)
                await release.wait()

        tasks = [asyncio.create_task(ask(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        assert at_work == [0]
        own.adjust(replicas=3)
        await asyncio.sleep(0.01)
        assert at_work == [0, 1, 2]
        release.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
