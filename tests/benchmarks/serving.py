"""The service under load: capacity, overload, killed replicas, a swap under load; and its speed beside the raw engine.

    python tests/benchmarks/serving.py                      # everything, about ten minutes
    python tests/benchmarks/serving.py --only load overload

Two reward replicas and one vLLM engine on this machine, requests from an open-loop generator (Poisson arrivals), every
answer compared with the one that is known to be right. Prints one line per scenario with what was asked for beside
what was seen. Asserts nothing: how fast a machine is belongs to the machine.
"""

import argparse
import asyncio
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
from llamas import save_llama

from load import Chats, Outcome, Rewards, Send, Summary, capacity, client, open_loop
from served import ROOT, Service

ITEMS = [{"prompt": "p" * (20 + 60 * (i % 5)), "responses": ["a" * (10 + 30 * j) for j in range(4)]} for i in range(20)]
MAX_MODEL_LEN = 1024
REWARD = "ray::ServeReplica:fuseline:reward:rm"


@dataclasses.dataclass
class World:
    """What is served, and where the models of a swap lie."""

    folder: Path

    def config(self, reward: str = "reward") -> dict[str, Any]:
        return {
            "chat": {"chat": {"folder": str(self.folder / "chat"), "engine": {"max_model_len": MAX_MODEL_LEN}}},
            "rewards": {"rm": {"folder": str(self.folder / reward), "placement": {"replicas": 2}}},
            "accelerator": "cpu",
        }


# ---- load -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """A running service with its clients; C is the capacity that was found, in requests per second."""

    world: World
    service: Service
    client: aiohttp.ClientSession
    seconds: float

    async def scenarios(self, names: Sequence[str]) -> None:
        rewards = Rewards(self.client, "rm", ITEMS)
        chats = Chats(self.client, "chat", ["q", "what?", "sing a song"], max_tokens=24)
        await rewards.learn()
        # So many clients that the model is never idle, and not so many that any of them is refused.
        for name, sender, clients in (("rewards", rewards, 8), ("chat", chats, 32)):
            found = await capacity(sender.send, clients=clients, seconds=self.seconds)
            print(f"{name}: capacity C = {found:.1f} requests/s (closed loop of {clients} clients)", flush=True)
            if "load" in names:
                steady = await self._load(f"{name} at 0.7 C", sender.send, 0.7 * found)
                ok = set(steady.statuses) == {200} and steady.p99_s <= 4 * steady.p50_s
                print(f"  asked: 0 errors, p99 <= 4 x p50: {'held' if ok else 'MISSED'}")
                if "overload" in names:
                    over = await self._load(f"{name} at 3 C", sender.send, 3 * found)
                    only = "held" if set(over.statuses) <= {200, 429} else "MISSED"
                    print(
                        f"  asked: only 429: {only}; accepted p99 <= 2 x: {over.p99_s / over.p50_s:.1f} x its own p50, "
                        f"{over.p99_s / steady.p99_s:.1f} x the p99 at 0.7 C"
                    )
            if name == "rewards" and "kills" in names:
                await self._kills(rewards, 0.5 * found)
            if name == "rewards" and "swap" in names:
                await self._swap(rewards, 0.5 * found)

    async def _load(self, name: str, send: Send, rate: float, **options: Any) -> Summary:
        summary = Summary.of(await open_loop(send, rate=rate, seconds=self.seconds, **options))
        print(f"{name} ({rate:.1f}/s): {summary}", flush=True)
        for wrong in summary.wrong[:3]:
            print(f"  wrong: {wrong}")
        return summary

    async def _kills(self, rewards: Rewards, rate: float) -> None:
        """Kill a replica every ten seconds."""
        seconds = max(30.0, 2 * self.seconds)

        async def kill() -> int:
            killed = 0
            while True:
                await asyncio.sleep(10)
                living = self.service.processes(REWARD)
                if living:
                    living[killed % len(living)].kill()
                    killed += 1
                    print(f"  killed replica {killed} ({len(living)} were living)", flush=True)

        killer = asyncio.create_task(kill())
        outcomes = await open_loop(rewards.send, rate=rate, seconds=seconds, retries=1)
        killer.cancel()
        summary = Summary.of(outcomes)
        share = summary.statuses.get(200, 0) / summary.requests
        print(f"rewards at 0.5 C with a replica killed every 10 s, one client retry: {summary}")
        print(
            f"  asked: >= 99.9 % answered, 0 wrong: {share:.2%}, {'held' if share >= 0.999 and not summary.wrong else 'MISSED'}"
        )

    async def _swap(self, rewards: Rewards, rate: float) -> None:
        """Put another reward model in place under load."""
        file = self.world.folder / "swap.yaml"
        import yaml

        file.write_text(yaml.safe_dump(self.world.config("reward2")), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "jobs.run",
            "serve",
            str(file),
            "--swap",
            "--address",
            self.service.ray_address,
        ]
        stop = asyncio.Event()
        old = next(iter(rewards.known))

        async def swap() -> tuple[float, str]:
            begun = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
            )  # fmt: skip
            text = (await process.communicate())[0].decode()
            stop.set()
            return time.perf_counter() - begun, text.strip().splitlines()[-1] if text.strip() else ""

        # What the new model answers is known from the model itself: the same code path gives the same bits.
        from fusion.rewards import ClassifierSettings
        from fusion.rows import Message
        from serving.cards import reward_card
        from serving.config import RewardModel

        folder = self.world.folder / "reward2"
        revision = reward_card("rm", RewardModel(folder=folder)).revision
        new = ClassifierSettings().load(folder)
        rewards.known[revision] = [
            [s.score for s in new.score([(Message("user", i["prompt"]), Message("assistant", r)) for r in i["responses"]])]
            for i in ITEMS
        ]  # fmt: skip
        begun = time.perf_counter()
        task = asyncio.create_task(swap())
        outcomes: list[Outcome] = []
        while not stop.is_set():
            latest = await open_loop(rewards.send, rate=rate, seconds=5)
            outcomes += latest
            if {outcome.status for outcome in latest} - {200}:
                print(f"  until {time.perf_counter() - begun:.0f} s: {Summary.of(latest)}", flush=True)
        outcomes += await open_loop(rewards.send, rate=rate, seconds=5)
        took, said = await task
        summary = Summary.of(outcomes)
        async with self.client.get("/v1/models") as answer:
            now = (await answer.json())["data"]
        shown = next(card["revision"] for card in now if card["id"] == "rm")
        print(f"rewards at 0.5 C while the model is swapped ({took:.1f} s; {said}): {summary}")
        ok = set(summary.statuses) == {200} and not summary.wrong and shown == revision != old
        print(f"  asked: 0 failed: {'held' if ok else 'MISSED'}; /v1/models shows {shown} instead of {old}", flush=True)


# ---- beside the raw engine --------------------------------------------------------------------


async def raw_stream(engine: Any, ids: list[int], seed: int, max_tokens: int) -> AsyncIterator[int]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(
        max_tokens=max_tokens, temperature=1.0, seed=seed, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    prompt: Any = {"prompt_token_ids": ids}
    async for output in engine.generate(prompt, parameters, request_id=f"raw-{seed}-{time.perf_counter_ns()}"):
        yield len(output.outputs[0].token_ids)


async def http_stream(http: aiohttp.ClientSession, seed: int, max_tokens: int) -> AsyncIterator[int]:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "x" * 100}],
        "max_tokens": max_tokens,
        "temperature": 1,
        "seed": seed,
        "stream": True,
    }
    async with http.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {") and b'"content":"' in line and b'"role"' not in line:
                yield 1


async def measure(streams: Sequence[AsyncIterator[int]], max_tokens: int) -> tuple[float, float]:
    """Return the median seconds to the first token, and tokens per second of all streams together."""
    begun = time.perf_counter()
    firsts: list[float] = []

    async def read(stream: AsyncIterator[int]) -> None:
        first = None
        async for _ in stream:
            if first is None:
                first = time.perf_counter() - begun
        firsts.append(first or 0.0)

    await asyncio.gather(*(read(stream) for stream in streams))
    return statistics.median(firsts), len(streams) * max_tokens / (time.perf_counter() - begun)


async def beside_raw(world: World, http: aiohttp.ClientSession, *, repeats: int) -> None:
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind")
    os.environ.update(OMP_NUM_THREADS="1", VLLM_NO_USAGE_STATS="1")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from fusion.chat import Chat, ChatConfig
    from fusion.rows import Message

    arguments = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 32, "enforce_eager": True}
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=str(world.folder / "chat"), distributed_executor_backend="uni", **arguments)
    )
    ids = list(Chat.load(world.folder / "chat", ChatConfig()).encode_prompt([Message("user", "x" * 100)]))
    max_tokens = 64
    for at_once in (1, 8):
        rows: dict[str, list[tuple[float, float]]] = {"raw": [], "http": []}
        for repeat in range(repeats + 1):
            seeds = range(1000 * repeat, 1000 * repeat + at_once)
            raw = await measure([raw_stream(engine, ids, seed, max_tokens) for seed in seeds], max_tokens)
            served = await measure([http_stream(http, seed, max_tokens) for seed in seeds], max_tokens)
            if repeat:
                rows["raw"].append(raw)
                rows["http"].append(served)
        ttft = {way: statistics.median(t for t, _ in found) * 1e3 for way, found in rows.items()}
        rate = {way: statistics.median(r for _, r in found) for way, found in rows.items()}
        print(
            f"chat, {at_once} at once: first token {ttft['http']:.1f} ms over HTTP, {ttft['raw']:.1f} ms raw; "
            f"{rate['http']:.0f} tokens/s over HTTP = {rate['http'] / rate['raw']:.0%} of raw ({rate['raw']:.0f})",
            flush=True,
        )
    engine.shutdown()
    del engine  # now, not when modules are gone, which it would complain of


SCENARIOS = ("load", "overload", "kills", "swap", "raw")


async def run(world: World, args: argparse.Namespace, service: Service) -> None:
    async with client(service.url) as http:
        if set(args.only) - {"raw"}:
            await Bench(world, service, http, args.seconds).scenarios(args.only)
        if "raw" in args.only:
            await beside_raw(world, http, repeats=args.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory))
        size = {"hidden": args.hidden, "layers": args.layers}
        save_llama(world.folder / "chat", scores=False, **size)
        save_llama(world.folder / "reward", scores=True, **size)
        save_llama(world.folder / "reward2", scores=True, seed=1, **size)
        with Service.of(world.folder, **world.config()) as service:
            asyncio.run(run(world, args, service))


if __name__ == "__main__":
    main()
