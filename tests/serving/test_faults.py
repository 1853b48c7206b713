"""Processes of the service killed while fifty requests are in flight. Long; `make test-serving` runs it.

Each request is answered rightly or refused with 503 and Retry-After, none hangs past the deadline, and the service comes
back by itself. Where the proxy itself is killed, connections to it break: there is nobody left to answer.
"""

import asyncio
import time

import pytest

from load import BROKEN, Chats, Outcome, Rewards, client, open_loop
from served import Service
from tiny_models import save_chat_model, save_reward_model

pytestmark = [pytest.mark.ray, pytest.mark.serving, pytest.mark.timeout(900)]

DEADLINE_S = 20.0
BACK_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    save_chat_model(folder / "chat", initializer_range=0.4)
    save_reward_model(folder / "reward", architecture="Qwen3")
    models = {
        "chat": {"tiny": {"folder": str(folder / "chat"), "engine": {"max_num_seqs": 64}}},
        "rewards": {"rm": {"folder": str(folder / "reward"), "placement": {"replicas": 2, "max_queued_requests": 64}}},
    }
    limits = {"deadline_s": DEADLINE_S, "chat_deadline_s": DEADLINE_S}
    with Service.of(folder, **models, accelerator="cpu", limits=limits) as running:
        yield running


ITEMS = [{"prompt": "p" * (5 + 40 * (i % 4)), "responses": ["a" * (1 + 17 * j) for j in range(4)]} for i in range(12)]


async def load_and_kill(service: Service, kind: str, title: str, capsys) -> list[Outcome]:
    """Send some 150 requests, kill the process when fifty of them are in flight, and wait until all is well again."""
    async with client(service.url, timeout_s=DEADLINE_S + 10) as http:
        rewards = Rewards(http, "rm", ITEMS)
        await rewards.learn()
        chats = Chats(http, "tiny", ["q", "what?", "sing"], max_tokens=200)
        sender = rewards if kind == "rewards" else chats
        in_flight = 0
        killed = asyncio.Event()

        async def send(number: int) -> tuple[int, str | None]:
            nonlocal in_flight
            in_flight += 1
            try:
                return await sender.send(number)
            finally:
                in_flight -= 1

        async def kill() -> None:
            while in_flight < 50:
                await asyncio.sleep(0.005)
            service.processes(title)[0].kill()
            killed.set()

        killer = asyncio.create_task(kill())
        outcomes = await open_loop(send, rate=200.0, seconds=1.0, seed=2)
        await asyncio.wait_for(killer, 5)
        begun = time.perf_counter()
        fine = 0
        while fine < 10:
            assert time.perf_counter() - begun < BACK_WITHIN_S, "the service did not come back"
            try:
                status, wrong = await sender.send(fine)
            except BROKEN:
                status, wrong = 0, None
            assert wrong is None or status == 0, wrong
            fine = fine + 1 if status == 200 else 0
            if status != 200:
                await asyncio.sleep(0.25)
        with capsys.disabled():
            statuses = {s: sum(o.status == s for o in outcomes) for s in sorted({o.status for o in outcomes})}
            longest = max(o.seconds for o in outcomes)
            print(
                f"\n{title} killed: {statuses}, longest {longest:.1f} s, back after {time.perf_counter() - begun:.1f} s"
            )
        return outcomes


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("rewards", "ray::ServeReplica:fuseline:reward:rm"),
        ("chat", "ray::ServeReplica:fuseline:chat:tiny"),
        ("chat", "VLLM::EngineCore"),
        ("rewards", "ray::ServeReplica:fuseline:front"),
    ],
)
def test_a_killed_process_costs_no_wrong_answer_and_nothing_hangs(service, kind, title, capsys):
    outcomes = asyncio.run(load_and_kill(service, kind, title, capsys))
    assert {o.status for o in outcomes} <= {200, 429, 503}
    assert [o.wrong for o in outcomes if o.wrong] == []
    assert max(o.seconds for o in outcomes) < DEADLINE_S + 5


def test_a_killed_proxy_breaks_its_connections_and_comes_back(service, capsys):
    outcomes = asyncio.run(load_and_kill(service, "rewards", "ray::ProxyActor", capsys))
    assert {o.status for o in outcomes} <= {0, 200, 429, 503}
    assert [o.wrong for o in outcomes if o.wrong and o.status] == []
    assert max(o.seconds for o in outcomes) < DEADLINE_S + 5
