"""Prompts, a model, and generate stages over them; also a driver to be killed.

Run as a program it is that driver: `generate_world.py ADDRESS ROOT MODEL NUM_PROMPTS`.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion.artifact import Artifact
from fusion.chat import ChatConfig
from fusion.config import Config
from fusion.models import ModelRef, PinnedModel
from fusion.placement import GeneratePlacement
from fusion.rows import Message, Prompt, Response
from fusion.sampling import Decoding
from fusion.stage import Progress, Stage, StageContext, StageResult, run_stage
from fusion.stages import generate
from fusion.stages.sampler import Sampler

DECODINGS = (
    Decoding(num_samples=2, max_tokens=24, top_p=0.95),
    Decoding(name="greedy", temperature=0.0, max_tokens=16),
)
NUM_SAMPLES = 3


class _Count(Config):
    ids: tuple[str, ...]


def _write_prompts(ctx: StageContext) -> StageResult:
    ids = ctx.config.ids
    for chunk in ctx.plan(ids, chunk_rows=1000):
        ctx.commit(chunk, [Prompt(i, "words", messages(i)) for i in ids[chunk.start : chunk.stop]])
    return StageResult(rows_in=len(ids))


def messages(prompt_id: str) -> tuple[Message, ...]:
    """The conversation of a prompt: its id says what is wrong with it, if anything."""
    kind = prompt_id.split("/")[0]
    if kind == "long":
        return (Message("user", "x" * 1000),)
    if kind == "wide":
        return (Message("user", prompt_id + "x" * 400),)
    if kind == "answered":
        return (Message("user", "q"), Message("assistant", "a"))
    return (Message("user", f"Say {prompt_id}, please."),)


@dataclasses.dataclass
class World:
    """Prompts and a model under one root."""

    root: Path
    model: Path
    prompt_ids: tuple[str, ...]

    def generate(
        self,
        name: str,
        *,
        sampler: type[Sampler] = Sampler,
        report: Callable[[Progress], None] = lambda progress: None,
        seed: int = 3,
        **placement: Any,
    ) -> Artifact:
        """Run (or resume) the generate stage `name` and return its artifact."""
        prompts = Stage("prompts", "words", 1, _Count(ids=self.prompt_ids), {}, _write_prompts, Prompt)
        model = PinnedModel("tiny", ModelRef(path=self.model), self.root / "digests.json")
        stage = Stage(
            kind="generate",
            slug=name,
            version=generate.VERSION,
            config=generate.GenerateConfig(
                name=name, chat=ChatConfig(), decodings=DECODINGS, seed=seed, dtype="float32"
            ),
            inputs={"prompts": prompts, "model": model},
            run=functools.partial(generate.run, sampler=sampler),
            row_type=Response,
            placement=GeneratePlacement(**{"kv_cache_gib": 0.1, "chunk_rows": 16, "accelerator": "cpu", **placement}),
        )
        asked, _ = run_stage(prompts, self.root, inputs={}, report=report, resume_command="again")
        inputs = {"prompts": asked, "model": model}
        return run_stage(stage, self.root, inputs=inputs, report=report, resume_command="again")[0]

    def directory(self, name: str) -> Path:
        (found,) = (self.root / "generate").glob(f"{name}-*")
        return found


def main() -> None:
    import ray

    address, root, model, num_prompts = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    World(Path(root), Path(model), tuple(f"p{i}" for i in range(int(num_prompts)))).generate("killed")


if __name__ == "__main__":
    main()
