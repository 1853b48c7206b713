"""How fast scores come over HTTP, beside the same scores from the model itself. Asserts nothing about time.

    python tests/benchmarks/rewards.py
    python tests/benchmarks/rewards.py --shapes 512:128 --prompts 16 --repeats 5

One prompt with K responses per request. Three ways, in turns, on one random model:

- raw: the shared forward in this process, over ids that were made beforehand, one prompt with its responses per call;
- HTTP: `POST /v1/rewards` on a service of its own process, with rendering, tokenising, Ray Serve and JSON, by a few
  clients at once;
- padded: batches of 8 conversations through the transformers model itself, padded to the longest, as most scripts do.

One thread each. The scores of the first two must be the same bits, which is checked.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
from llamas import MAX_LENGTH, save_llama
from training.shapes import ULTRAFEEDBACK, Fixed, Lognormal

from fusion.rewards import ClassifierSettings, RewardFn
from fusion.rewards.common import Tokens
from fusion.rows import Message
from served import Service

SHAPES: dict[str, Fixed | Lognormal] = {
    "ultrafeedback": ULTRAFEEDBACK,
    "256:256": Fixed(256, 256),
    "512:128": Fixed(512, 128),
    "1024:128": Fixed(1024, 128),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Prompts with their responses as text; a byte is a token."""

    items: list[tuple[str, list[str]]]

    @classmethod
    def draw(cls, lengths: Fixed | Lognormal, *, prompts: int, responses: int) -> "Workload":
        generator = np.random.Generator(np.random.PCG64(3))
        rng = random.Random(3)
        text = lambda length: "".join(rng.choices("abcdefghij ", k=length))  # noqa: E731
        rows = lengths.draw(generator, rows=prompts, num_responses=responses, max_length=MAX_LENGTH - 64)
        return cls([(text(prompt), [text(length) for length in own]) for prompt, own in rows])

    @property
    def num_responses(self) -> int:
        return sum(len(responses) for _, responses in self.items)

    def tokens(self, reward: RewardFn) -> list[list[Tokens]]:
        return [
            [reward._tokens((Message("user", prompt), Message("assistant", response))) for response in responses]
            for prompt, responses in self.items
        ]


def raw(reward: RewardFn, work: list[list[Tokens]]) -> list[float]:
    return [outputs[0] for own in work for outputs in reward._model.score_ids(own)]


def padded(reward: RewardFn, work: list[list[Tokens]], rows: int = 8) -> list[float]:
    import torch

    model = reward._model._model
    flat = [tokens.ids for own in work for tokens in own]
    found = []
    for start in range(0, len(flat), rows):
        batch = flat[start : start + rows]
        longest = max(map(len, batch))
        ids = torch.full((len(batch), longest), 256)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(batch):
            ids[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), 1
        with torch.inference_mode():
            found += model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
    return found


def over_http(service: Service, workload: Workload, *, clients: int) -> list[float]:
    def ask(item: tuple[str, list[str]]) -> list[float]:
        body = {"model": "rm", "input": [{"prompt": item[0], "responses": item[1]}]}
        answer = service.http.post("/v1/rewards", json=body)
        answer.raise_for_status()
        return [result["score"] for result in answer.json()["results"]]

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return [score for scores in pool.map(ask, workload.items) for score in scores]


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def compare(service: Service, reward: RewardFn, name: str, args: argparse.Namespace) -> dict:
    """Time the three ways in turns and return medians and ratios."""
    workload = Workload.draw(SHAPES[name], prompts=args.prompts, responses=args.responses)
    work = workload.tokens(reward)
    assert reward._model.passes == "shared"

    def run_padded() -> list[float]:
        reward._model.use("padded")
        try:
            return padded(reward, work)
        finally:
            reward._model.use("shared", skips_unread=True)

    ways = {
        "raw": lambda: raw(reward, work),
        "http": lambda: over_http(service, workload, clients=args.clients),
        "padded": run_padded,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, list[float]] = {}
    for repeat in range(args.repeats + 1):
        for way, run in ways.items():
            took, scores[way] = timed(run)
            if repeat:  # the first round warms up
                seconds[way].append(took)
    rates = {way: workload.num_responses / statistics.median(took) for way, took in seconds.items()}
    line = {
        "shape": name,
        "responses": workload.num_responses,
        **{f"{way}_per_s": round(rate, 2) for way, rate in rates.items()},
        "http_of_raw": round(statistics.median(a / b for a, b in zip(seconds["raw"], seconds["http"], strict=True)), 3),
        "http_vs_padded": round(
            statistics.median(a / b for a, b in zip(seconds["padded"], seconds["http"], strict=True)), 2
        ),
        "bits_equal": repr(scores["raw"]) == repr(scores["http"]),
        "worst_from_padded": max(abs(a - b) for a, b in zip(scores["raw"], scores["padded"], strict=True)),
    }
    print(json.dumps(line), flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["ultrafeedback", "512:128"], choices=list(SHAPES))
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--responses", type=int, default=5)
    parser.add_argument("--clients", type=int, default=3, help="requests in flight")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread per model", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        folder = save_llama(Path(directory) / "rm", scores=True, hidden=args.hidden, layers=args.layers)
        reward = ClassifierSettings().load(folder)
        with Service.start("--reward", f"rm={folder}", "--accelerator", "cpu") as service:
            lines = [compare(service, reward, name, args) for name in args.shapes]
    for line in lines:
        print(
            f"{line['shape']:>14}: HTTP {line['http_per_s']:.1f} responses/s = {line['http_of_raw']:.0%} of the raw shared "
            f"forward ({line['raw_per_s']:.1f}) = {line['http_vs_padded']:.2f}x padded batches of 8 "
            f"({line['padded_per_s']:.1f}); scores {'the same bits' if line['bits_equal'] else 'DIFFER'} raw and HTTP"
        )


if __name__ == "__main__":
    main()
