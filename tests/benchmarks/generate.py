"""How fast the generate stage is beside one raw `LLM.generate` call over the same rows. Asserts nothing.

    python tests/benchmarks/generate.py --rows 512 --repeats 3
    python tests/benchmarks/generate.py --rows 20000 --device gpu --model FOLDER --hidden-size 0

Both ways run on engines with equal arguments, in Ray actors with equal resources, in turns, and must draw
exactly as many tokens. Raw: ids prepared beforehand, all rows in one call, after a warm-up. Stage: from the
moment its engine is ready to the last part file, with rendering, tokenising, journal, decoding and writing.
Response lengths are lognormal: sixteen decodings whose token limits are its quantiles.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import ray

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import generate_world
from fusion.chat import Chat, ChatConfig
from fusion.placement import GeneratePlacement
from fusion.rows import Message
from fusion.sampling import Decoding, sample_seed
from fusion.stages.engine import EngineSettings, engine_arguments, prepare, sampling_params
from fusion.stages.generate import engine_resources
from fusion.stages.sampler import ENGINE_FACTS
from generate_world import World
from tiny_models import save_chat_model

NUM_LENGTHS = 16
SEED = 3


def lognormal_decodings(median: float, sigma: float) -> tuple[Decoding, ...]:
    """Decodings of one sample each; their token limits are the quantiles of a lognormal distribution."""
    normal = NormalDist()
    quantiles = [normal.inv_cdf((i + 0.5) / NUM_LENGTHS) for i in range(NUM_LENGTHS)]
    limits = [max(1, round(median * 2.718281828 ** (sigma * q))) for q in quantiles]
    # A fixed shuffle: sorted lengths would make every chunk end with its longest rows.
    return tuple(Decoding(name=f"l{i}", max_tokens=limits[i * 7 % NUM_LENGTHS]) for i in range(NUM_LENGTHS))


class RawEngine:
    """`LLM.generate` and nothing else."""

    def __init__(self, settings: EngineSettings, decodings: tuple[Decoding, ...], prompt_ids: list[str]) -> None:
        on_cpu = prepare(settings)
        from vllm import LLM

        self.llm = LLM(**engine_arguments(settings, on_cpu=on_cpu))
        chat = Chat.load(settings.folder, ChatConfig())
        self.prompts: list[Any] = []
        self.params = []
        for prompt_id in prompt_ids:
            ids = chat.encode_prompt((Message("user", f"Say {prompt_id}, please."),))
            for sample, decoding in enumerate(decodings):
                seed = sample_seed(SEED, prompt_id, sample)
                self.prompts.append({"prompt_token_ids": list(ids)})
                self.params.append(
                    sampling_params(decoding, seed=seed, stop_ids=chat.stop_ids, max_tokens=decoding.max_tokens)
                )
        self.llm.generate(self.prompts[:NUM_LENGTHS], self.params[:NUM_LENGTHS], use_tqdm=False)

    def run(self) -> tuple[int, float]:
        """Return tokens and seconds."""
        begun = time.monotonic()
        outputs = self.llm.generate(self.prompts, self.params, use_tqdm=False)
        seconds = time.monotonic() - begun
        self.llm.reset_prefix_cache()
        return sum(len(o.outputs[0].token_ids) for o in outputs), seconds


def run_stage(world: World, number: int, placement: GeneratePlacement) -> tuple[int, float]:
    """Return tokens and seconds from the engine's readiness to the last part."""
    artifact = world.generate(f"repeat{number}", seed=SEED, **placement.model_dump())
    ready = (artifact.path / ENGINE_FACTS).stat().st_mtime
    last = max(part.stat().st_mtime for part in artifact.path.glob("part-*.parquet"))
    return artifact.manifest.notes["tokens"], last - ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=512, help=f"responses in one repetition, a multiple of {NUM_LENGTHS}"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--model", type=Path, help="folder of a real model; without it a random one is made")
    parser.add_argument("--hidden-size", type=int, default=256, help="size of the random model")
    parser.add_argument("--median-tokens", type=float, default=48)
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--chunk-rows", type=int, default=128)
    parser.add_argument("--concurrent-chunks", type=int, default=GeneratePlacement().concurrent_chunks)
    parser.add_argument("--cpus", type=float, default=1, help="CPUs and OpenMP threads of an engine")
    options = parser.parse_args()

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_DATA_DISABLE_PROGRESS_BARS="1")
    workers = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in (*sys.path, str(Path.cwd())) if p)}}
    ray.init(
        num_cpus=max(8, os.cpu_count() or 8), include_dashboard=False, log_to_driver=False, runtime_env=workers,
        _temp_dir=f"/tmp/r-{os.getpid()}", logging_level="WARNING",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="generate-") as folder:
        measure(options, Path(folder))
    ray.shutdown()


def measure(options: argparse.Namespace, root: Path) -> None:
    decodings = lognormal_decodings(options.median_tokens, options.sigma)
    longest = max(d.max_tokens for d in decodings)
    model = options.model or save_chat_model(root / "model", hidden_size=options.hidden_size, max_length=longest + 128)
    placement = GeneratePlacement(
        accelerator=options.device, max_num_seqs=options.max_num_seqs, chunk_rows=options.chunk_rows,
        concurrent_chunks=options.concurrent_chunks, cpus=options.cpus, kv_cache_gib=1.0, gpu_memory_share=0.45,
    )  # fmt: skip
    prompt_ids = [f"p{i}" for i in range(options.rows // NUM_LENGTHS)]
    generate_world.DECODINGS = decodings
    world = World(root, model, tuple(prompt_ids))
    settings = EngineSettings(
        folder=model, dtype="float32", seed=SEED, max_num_seqs=placement.max_num_seqs,
        kv_cache_gib=placement.kv_cache_gib, gpu_memory_share=placement.gpu_memory_share,
        cpu_threads=int(placement.cpus),
    )  # fmt: skip
    raw = ray.remote(RawEngine).options(**engine_resources(placement)).remote(settings, decodings, prompt_ids)
    results: dict[str, list[tuple[int, float]]] = {"raw": [], "stage": []}
    for number in range(options.repeats):
        results["raw"].append(ray.get(raw.run.remote()))
        results["stage"].append(run_stage(world, number, placement))
        (raw_tokens, raw_s), (tokens, stage_s) = results["raw"][-1], results["stage"][-1]
        print(
            f"{number}: raw {raw_tokens} tokens {raw_tokens / raw_s:8.1f}/s   "
            f"stage {tokens} tokens {tokens / stage_s:8.1f}/s   {tokens / stage_s / (raw_tokens / raw_s):.3f}"
        )
    medians = {name: statistics.median(n / s for n, s in pairs) for name, pairs in results.items()}
    print(json.dumps({
        "rows": len(prompt_ids) * NUM_LENGTHS,
        "tokens": results["raw"][0][0],
        "raw_tokens_per_s": round(medians["raw"], 1),
        "stage_tokens_per_s": round(medians["stage"], 1),
        "ratio": round(medians["stage"] / medians["raw"], 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
