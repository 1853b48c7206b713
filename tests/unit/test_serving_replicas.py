"""What the front asks Ray of its replicas; tests/serving/test_real.py asks a real one."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serving import replicas
from serving.ingress import Models


def status(app, *deployments):
    value = lambda name: SimpleNamespace(value=name)  # noqa: E731
    return SimpleNamespace(
        app_status=SimpleNamespace(status=value(app)),
        deployment_statuses=[SimpleNamespace(status=value(name)) for name in deployments],
    )


class Controller:
    """Answers what is in its list, then waits for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def get_serve_status(self, app):
        assert app == "fuseline"
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def told_by(controller, monkeypatch, count):
    monkeypatch.setattr(replicas, "_get_global_client", lambda: controller)

    async def run():
        told, enough = [], asyncio.Event()

        def tell(starting):
            told.append(starting)
            if len(told) == count:
                enough.set()

        task = asyncio.create_task(replicas.watch("fuseline", tell, period_s=0.001))
        await asyncio.wait_for(enough.wait(), 5)
        task.cancel()
        return told

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("app", "deployment", "starting"),
    [
        ("RUNNING", "HEALTHY", False),
        ("DEPLOYING", "HEALTHY", True),
        ("RUNNING", "UPSCALING", True),
        ("RUNNING", "UNHEALTHY", True),
        ("RUNNING", "DOWNSCALING", False),
        ("DEPLOY_FAILED", "DEPLOY_FAILED", False),
    ],
)
def test_replicas_start_in_a_rollout_after_a_death_and_when_more_are_added(app, deployment, starting, monkeypatch):
    assert told_by(Controller(status(app, "HEALTHY", deployment)), monkeypatch, 1) == [starting]


def test_the_watch_goes_on_whatever_fails(monkeypatch, caplog):
    steady, starting = status("RUNNING"), status("DEPLOYING")
    controller = Controller(starting, RayActorError(), RayActorError(), ValueError("odd"), steady)
    with caplog.at_level(logging.WARNING, logger="serving.replicas"):
        assert told_by(controller, monkeypatch, 2) == [True, False]
    assert controller.asked >= 5
    assert [record.message for record in caplog.records][:2] == [
        "Serve's controller does not say what is starting: RayActorError",  # once, not every second
        "what is starting was not found out; asking again",
    ]


def test_before_its_first_request_a_handle_knows_no_replica():
    """And asking must not make the router: that belongs to another thread."""

    class Router:
        _request_router = None

        @property
        def request_router(self):
            raise AssertionError("made in the wrong thread")

    assert replicas.living(SimpleNamespace(_router=None)) == 0
    assert replicas.living(SimpleNamespace(_router=SimpleNamespace(_asyncio_router=Router()))) == 0
    Router._request_router = SimpleNamespace(curr_replicas={"a": 1, "b": 2})
    assert replicas.living(SimpleNamespace(_router=SimpleNamespace(_asyncio_router=Router()))) == 2


def test_a_kind_of_route_without_a_model_has_no_seats_to_tell():
    """Its front would answer 404; no seats at all would make the proxy say 429 for ever."""
    of = lambda seats: SimpleNamespace(line=SimpleNamespace(seats=seats))  # noqa: E731
    models: Any = SimpleNamespace(_config=SimpleNamespace(http=SimpleNamespace(most=2)), chats={"a": of(5)}, rewards={})
    assert Models.seats(models) == {"chat": 10}
    models.rewards = {"rm": of(3), "rm2": of(1)}
    assert Models.seats(models) == {"chat": 18, "reward": 8}
