"""Stage score: one score for every response, one artifact per model that answered.

This is the driver's side: which rows go to which part, what the actors (`fusion.stages.scorer`) are given,
and statistics for people. Every response is scored or quarantined with a reason; a scorer's failure on one
row is never a score of 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
from pydantic import Field

from fusion.config import Config
from fusion.errors import ArtifactError, InputError
from fusion.placement import ScorePlacement
from fusion.rewards import DomainScorer, ModelSettings, PythonScorer, Scorer
from fusion.row_tables import to_table
from fusion.rows import Prompt, Response
from fusion.stage import Chunk, StageContext, StageResult
from fusion.stages.judging import SANDBOX
from fusion.stages.statistics import score_statistics

VERSION = 2


class ScoreConfig(Config):
    """Which scorer judges which domain. Reward models themselves are inputs."""

    scorers: dict[str, DomainScorer] = Field(min_length=1)
    """What judges each domain; `*` is for all domains not named."""

    @classmethod
    def of(cls, scorers: Mapping[str, Scorer]) -> Self:
        """Return the identity of a recipe's scorers; the model of each becomes the input `reward_<domain>`."""
        return cls(scorers={domain: DomainScorer.of(scorer) for domain, scorer in scorers.items()})


def run(ctx: StageContext) -> StageResult:
    """Inputs: `prompts`, `responses`, and `reward_<domain>` for each reward model. Output: ScoredResponse rows.

    Raises:
        InputError: a scorer function cannot be imported, or there is no response to score.
        ModelError: a reward model folder cannot be used.
        StageError: the actors failed.
    """
    config: ScoreConfig = ctx.config
    for scorer in config.scorers.values():
        if isinstance(scorer.reward, PythonScorer):
            scorer.reward.load()  # here too, so that a wrong name fails before any actor starts
    row_ids = [r.row_id for r in ctx.rows("responses", Response)]
    if not row_ids:
        raise InputError(f"{ctx.stage.label}: there is no response to score in {ctx.artifact('responses').path}")
    chunks = ctx.plan(row_ids, chunk_rows=ctx.placement.chunk_rows)
    missing = ctx.missing(chunks)
    ctx.progress.begin(total=len(row_ids), done=len(row_ids) - sum(c.stop - c.start for c in missing))
    if missing:
        _score(ctx, missing)
    return StageResult(rows_in=len(row_ids), notes={**score_statistics(ctx.path, chunks), **_sandbox(ctx)})


def _sandbox(ctx: StageContext) -> dict[str, list[str]]:
    """Return at which levels the programs of responses were confined, weakest first; nothing where none were run."""
    levels = sorted(file.stem.removeprefix(SANDBOX) for file in ctx.path.glob(f"{SANDBOX}*.json"))
    return {"sandbox": levels} if levels else {}


def _score(ctx: StageContext, missing: Sequence[Chunk]) -> None:
    # Ray is imported by the stages that run on it and only then: a recipe is planned without it.
    from fusion.stages.chunks import map_chunks, wants_gpu
    from fusion.stages.scorer import ScoreActor, ScorerSettings

    config: ScoreConfig = ctx.config
    placement: ScorePlacement = ctx.placement
    models = [domain for domain, scorer in config.scorers.items() if isinstance(scorer.reward, ModelSettings)]
    gpu = bool(models) and wants_gpu(placement.accelerator)
    settings = ScorerSettings(
        directory=ctx.path.resolve(),
        scorers=config.scorers,
        folders={domain: ctx.model_folder(f"reward_{domain}") for domain in models},
        device="cuda" if gpu else "cpu",
        num_threads=max(1, int(placement.cpus)),
    )
    for _ in map_chunks(
        ctx,
        missing,
        _tables(ctx, missing),
        ScoreActor,
        {"settings": settings},
        replicas=placement.replicas,
        num_cpus=placement.cpus,
        num_gpus=1.0 if gpu else 0.0,
    ):
        pass


def _tables(ctx: StageContext, chunks: Sequence[Chunk]) -> Iterator[pa.Table]:
    """Yield the work of each chunk; responses are streamed, prompts are held."""
    from fusion.stages.scorer import Work

    prompts: dict[str, Prompt] = {p.prompt_id: p for p in ctx.rows("prompts", Prompt)}
    waiting = iter(chunks)
    chunk = next(waiting, None)
    work: list[Any] = []
    for place, response in enumerate(ctx.rows("responses", Response)):
        if chunk is None:
            return
        if place < chunk.start:
            continue
        if response.prompt_id not in prompts:
            raise ArtifactError(
                f"{ctx.artifact('responses').path}: {response.row_id} answers a prompt that is not in "
                f"{ctx.artifact('prompts').path}; run again with --repair"
            )
        work.append(Work(prompts[response.prompt_id], response))
        if place + 1 == chunk.stop:
            yield to_table(work, Work)
            work, chunk = [], next(waiting, None)
