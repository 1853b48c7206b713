"""Stage generate: sampled responses of one model to all prompts, one artifact per model.

Every response is a row of its own with its own seed, made of (stage seed, prompt id, sample), so that
chunks, replicas and restarts change nothing of what is drawn. This file plans chunks and sends them to
`Sampler` actors; what happens to a row there is in `fusion.stages.sampler`.
"""

import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from fusion.artifact import part_name
from fusion.chat import ChatConfig
from fusion.config import Config
from fusion.errors import InputError
from fusion.placement import GeneratePlacement
from fusion.row_tables import to_table
from fusion.rows import Finish, Prompt
from fusion.sampling import Decoding, Precision, sample_seed
from fusion.select.split import Split
from fusion.stage import Chunk, StageContext, StageResult
from fusion.stages.chunks import map_chunks, wants_gpu
from fusion.stages.engine import EngineSettings
from fusion.stages.groups import sides_of
from fusion.stages.journal import remove_journal
from fusion.stages.sampler import ENGINE_FACTS, Sampler, SamplerSettings, Work

log = logging.getLogger(__name__)

VERSION = 2


class GenerateConfig(Config):
    """What is drawn from a model. The prompts and the model itself are inputs."""

    name: str
    """Name of the model in the recipe; responses carry it."""
    chat: ChatConfig
    decodings: tuple[Decoding, ...] = Field(min_length=1)
    """Ways to decode; sample indices count over all of them in this order."""
    seed: int
    dtype: Precision = "bfloat16"
    """Precision of the engine's weights and activations."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Prompt and response tokens together; null takes it from the model."""
    split: Split | None = None
    """With `side`: only the prompts on that side of this split are answered; None where the input `split` says it."""
    side: Literal["sft", "preference"] | None = None
    domains: tuple[str, ...] | None = None
    """Domains whose prompts are answered; None = all but those in `without`."""
    without: tuple[str, ...] = ()
    """Domains whose prompts are not answered."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.split is not None and self.side is None:
            raise ValueError("split needs side: which prompts of it are answered")
        if len({d.name for d in self.decodings}) < len(self.decodings):
            raise ValueError("two decodings have the same name; responses are told apart by it")
        return self

    @property
    def num_samples(self) -> int:
        return sum(d.num_samples for d in self.decodings)


def run(ctx: StageContext, *, sampler: type[Sampler] = Sampler) -> StageResult:
    """Inputs: `prompts` (Prompt rows), `model`, and `split` (Assignment rows) where sides are not by ratio. Output: Response rows, one for each prompt and sample.

    Raises:
        InputError: no prompts.
        ModelError: the model's tokenizer or template cannot be used.
        StageError: engines cannot start, or die without getting anywhere.
    """
    config: GenerateConfig = ctx.config
    prompts = _asked(ctx)
    row_ids = [f"{p.prompt_id}/{config.name}/{i}" for p in prompts for i in range(config.num_samples)]
    chunks = ctx.plan(row_ids, chunk_rows=ctx.placement.chunk_rows)
    missing = ctx.missing(chunks)
    ctx.progress.begin(total=len(row_ids), done=len(row_ids) - sum(c.stop - c.start for c in missing))
    if missing:
        settings = _settings(ctx)
        tokens = rows = 0
        for receipt in map_chunks(
            ctx,
            missing,
            _tables(config, prompts, missing),
            sampler,
            {"settings": settings},
            replicas=settings.replicas,
            concurrent=ctx.placement.concurrent_chunks,
            **engine_resources(ctx.placement),
        ):
            tokens += receipt.tokens
            rows += receipt.rows + receipt.quarantined
        log.info("%s: %d rows, %d tokens, %.0f tokens/s", ctx.stage.label, rows, tokens, ctx.progress.tokens_per_s)
    remove_journal(ctx.path)
    return StageResult(rows_in=len(row_ids), notes=_notes(ctx, chunks))


def engine_resources(placement: GeneratePlacement) -> dict[str, float]:
    """Return what one engine's actor asks Ray for: CPUs, and GPUs where the cluster or the recipe has them."""
    gpus = placement.gpus_per_engine if wants_gpu(placement.accelerator) else 0.0
    return {"num_cpus": placement.cpus, "num_gpus": gpus}


def _asked(ctx: StageContext) -> list[Prompt]:
    """The prompts to answer, without gold answers and tests: a model under test must not be sent them."""
    config: GenerateConfig = ctx.config
    prompts = [Prompt(p.prompt_id, p.domain, p.messages) for p in ctx.rows("prompts", Prompt)]
    if config.side is not None:
        sides = sides_of(ctx, config.split, prompts)
        prompts = [p for p in prompts if sides.get(p.prompt_id) == config.side]
    prompts = [p for p in prompts if p.domain not in config.without]
    if config.domains is not None:
        prompts = [p for p in prompts if p.domain in config.domains]
    if not prompts:
        of = f" of {', '.join(config.domains)}" if config.domains else ""
        raise InputError(f"{ctx.stage.label}: there is no prompt{of} to answer in {ctx.artifact('prompts').path}")
    return prompts


def _settings(ctx: StageContext) -> SamplerSettings:
    config: GenerateConfig = ctx.config
    placement: GeneratePlacement = ctx.placement
    return SamplerSettings(
        directory=ctx.path.resolve(),
        name=config.name,
        chat=config.chat,
        decodings=config.decodings,
        engine=EngineSettings(
            folder=ctx.model_folder("model"),
            dtype=config.dtype,
            seed=config.seed,
            max_model_len=config.max_model_len,
            max_num_seqs=placement.max_num_seqs,
            tensor_parallel=placement.tensor_parallel,
            gpu_memory_share=placement.gpu_memory_share,
            kv_cache_gib=placement.kv_cache_gib,
            cpu_threads=max(1, int(placement.cpus)),
        ),
        replicas=placement.replicas,
        run=uuid.uuid4().hex[:12],
    )


def _tables(config: GenerateConfig, prompts: Sequence[Prompt], chunks: Sequence[Chunk]) -> Iterator[pa.Table]:
    """Yield the work rows of each chunk: all samples of a prompt, then the next prompt."""
    decoding_of = [i for i, d in enumerate(config.decodings) for _ in range(d.num_samples)]
    for chunk in chunks:
        places = (divmod(place, config.num_samples) for place in range(chunk.start, chunk.stop))
        work = [
            Work(
                prompts[number],
                decoding_of[sample],
                sample,
                sample_seed(config.seed, prompts[number].prompt_id, sample),
            )
            for number, sample in places
        ]
        yield to_table(work, Work)


def _notes(ctx: StageContext, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Facts for the manifest: what ran, the effective sampling, and how the responses ended."""
    facts = json.loads((ctx.path / ENGINE_FACTS).read_text())
    config: GenerateConfig = ctx.config
    limits = {d.name: d.max_tokens for d in config.decodings}
    tokens = stopped = shortened = rows = 0
    for chunk in chunks:
        table = pq.read_table(ctx.path / part_name(chunk.index), columns=["decoding", "finish_reason", "token_ids"])
        lengths = table["token_ids"].combine_chunks().value_lengths().to_pylist()
        for name, finish, length in zip(
            *(table[c].to_pylist() for c in ("decoding", "finish_reason")), lengths, strict=True
        ):
            rows += 1
            tokens += length
            stopped += finish == Finish.stop
            shortened += finish == Finish.length and length < limits[name]
    return {
        **facts,
        "sampling": [d.model_dump(mode="json") for d in config.decodings],
        "responses": rows,
        "tokens": tokens,
        "stopped": stopped,
        "shortened_by_max_model_len": shortened,
    }
