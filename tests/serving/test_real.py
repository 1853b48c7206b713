"""The promises of the service on the real one: Ray Serve, vLLM and a reward model with two replicas, on CPU.

Long; `make test-serving` runs it.
"""

import asyncio
import concurrent.futures
import random
import time

import httpx
import pytest

from corpus_check import cases, check
from served import Service
from serving import replicas
from tiny_models import save_chat_model, save_reward_model

pytestmark = [pytest.mark.ray, pytest.mark.serving, pytest.mark.timeout(900)]

CHAT_SEATS = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    save_chat_model(folder / "chat", initializer_range=0.4, stops=False, max_length=4096)
    save_reward_model(folder / "reward", architecture="Qwen3")
    return folder


def config(folder):
    return {
        "chat": {"tiny": {"folder": str(folder / "chat"), "engine": {"max_num_seqs": CHAT_SEATS}}},
        "rewards": {"rm": {"folder": str(folder / "reward"), "placement": {"replicas": 2}}},
        "accelerator": "cpu",
    }


@pytest.fixture(scope="module")
def service(folder):
    with Service.of(folder, **config(folder)) as running:
        yield running


# ---- same input, same bits --------------------------------------------------------------------


def corpus(num_prompts: int = 40, seed: int = 11) -> list[tuple[str, str]]:
    """Prompts with three answers each, of very different lengths."""
    rng = random.Random(seed)
    text = lambda most: "".join(rng.choices("abcdefgh é<|im_end|>\n", k=rng.randint(1, most)))  # noqa: E731
    prompts = [text(rng.choice((5, 60, 160))) for _ in range(num_prompts)]
    return [(prompt, text(rng.choice((3, 40, 120)))) for prompt in prompts for _ in range(3)]


def one_by_one(http: httpx.Client, pairs: list[tuple[str, str]]) -> list[float]:
    found = []
    for prompt, response in pairs:
        item = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]}
        found.append(scores(http, [item])[0])
    return found


def scores(http: httpx.Client, items: list[dict]) -> list[float]:
    answer = http.post("/v1/rewards", json={"model": "rm", "input": items})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert all(result["status"] == "ok" for result in results), results
    return [result["score"] for result in results]


def test_a_thousand_scores_do_not_depend_on_neighbours_order_batch_replica_or_restart(service, folder, capsys):
    pairs = corpus()
    alone = dict(zip(pairs, one_by_one(service.http, pairs), strict=True))
    assert len(set(alone.values())) > 0.9 * len(set(pairs))
    replicas = service.processes("ray::ServeReplica:fuseline:reward:rm")
    assert len(replicas) == 2
    used = [sum(p.cpu_times()[:2]) for p in replicas]
    rng = random.Random(3)
    batches: list[list[tuple[str, str]]] = []
    for size in (1, 2, 7, 32):
        order = rng.sample(pairs, len(pairs))
        batches += [order[start : start + size] for start in range(0, len(order), size)]
    batches += [rng.choices(pairs, k=rng.randint(1, 64)) for _ in range(20)]

    def compare(batch: list[tuple[str, str]]) -> tuple[int, int]:
        found = scores(service.http, [{"prompt": p, "response": r} for p, r in batch])
        return len(found), sum(repr(a) != repr(alone[pair]) for a, pair in zip(found, batch, strict=True))

    # At once, so that requests are scored together and both replicas work.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = list(pool.map(compare, batches))
    compared, different = sum(n for n, _ in done), sum(d for _, d in done)

    # K answers to one prompt, which share its encoding.
    grouped: dict[str, list[str]] = {}
    for prompt, response in pairs:
        grouped.setdefault(prompt, []).append(response)
    for prompt, responses in grouped.items():
        shuffled = rng.sample(responses, len(responses))
        found = scores(service.http, [{"prompt": prompt, "responses": shuffled}])
        compared += len(found)
        different += sum(repr(a) != repr(alone[prompt, r]) for a, r in zip(found, shuffled, strict=True))
    assert all(sum(p.cpu_times()[:2]) > before for p, before in zip(replicas, used, strict=True)), "one replica idled"

    with Service.of(folder / "chat", **{**config(folder), "chat": {}}) as again:
        found = scores(again.http, [{"prompt": p, "response": r} for p, r in pairs[:60]])
        compared += len(found)
        different += sum(repr(a) != repr(alone[pair]) for a, pair in zip(found, pairs[:60], strict=True))
    with capsys.disabled():
        print(f"\n{compared} scores compared, {different} differ")
    assert compared >= 1000
    assert different == 0


# ---- raw requests -----------------------------------------------------------------------------


def test_the_hand_corpus_holds_behind_rays_proxy(service):
    """The same requests as in test_corpus.py, here through Ray's proxy and with real models."""
    every = cases()
    assert len(every) >= 120
    wrong = [problem for case in every for problem in check(case, service.url, "tiny", "rm")]
    assert not wrong, "\n".join(wrong)
    assert service.http.get("/readyz").status_code == 200


# ---- cancellation -----------------------------------------------------------------------------


def test_a_hundred_streams_closed_half_way_free_the_engine(service, capsys):
    import os

    import ray
    from ray import serve

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address=service.ray_address, log_to_driver=False)
    try:
        deployments = serve.status().applications["fuseline"].deployments
        # Named after what it holds: the model's name and a digest.
        handle = serve.get_deployment_handle(next(d for d in deployments if d.startswith("chat:tiny")), "fuseline")
        seconds, most = asyncio.run(open_and_close(service.url, handle, 100))
        rewards = serve.get_deployment_handle(next(d for d in deployments if d.startswith("reward:rm")), "fuseline")
        assert rewards.determinism.remote().result().startswith("bitwise")
        assert (replicas.living(handle), replicas.living(rewards)) == (1, 2)
        assert asyncio.run(first_told()) is False
    finally:
        ray.shutdown()
    with capsys.disabled():
        print(f"\n100 streams closed half-way: {most} were in the engine, 0 after {seconds:.2f} s")
    assert most > 50
    assert seconds <= 2.0
    answer = service.http.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "q"}], "max_tokens": 4},
    )
    assert answer.status_code == 200


async def first_told() -> bool:
    """Return whether the watch of a front says that replicas are starting."""
    told = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(replicas.watch("fuseline", told.set_result, period_s=60))
    try:
        return await asyncio.wait_for(told, 30)
    finally:
        task.cancel()


async def open_and_close(url: str, handle, count: int) -> tuple[float, int]:
    """Return the seconds from closing the streams to an empty engine, and how many sequences were in it."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        half_way, close = asyncio.Event(), asyncio.Event()
        begun = 0

        async def stream(seed: int) -> None:
            nonlocal begun
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": "q"}],
                "max_tokens": 4000,
                "temperature": 1,
                "seed": seed,
                "stream": True,
            }
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200
                lines = answer.aiter_lines()  # held: httpx closes a response whose iterator is collected
                async for line in lines:
                    if line.startswith("data: ") and '"content"' in line:
                        break
                begun += 1
                if begun == count:
                    half_way.set()
                await close.wait()

        tasks = [asyncio.create_task(stream(seed)) for seed in range(count)]
        done, _ = await asyncio.wait([asyncio.create_task(half_way.wait()), *tasks], return_when="FIRST_COMPLETED")
        for task in done:
            task.result()
        most = await handle.num_unfinished.remote()
        closed = time.perf_counter()
        close.set()
        await asyncio.gather(*tasks)
        while await handle.num_unfinished.remote():
            await asyncio.sleep(0.02)
            assert time.perf_counter() - closed < 60
        return time.perf_counter() - closed, most
