"""Stage score_file: a score for every response of a file of new data, by the code that serves `POST /v1/rewards`.

This is the driver's side: the key (what the file holds, the model, the settings), one pass over the file, slices
of it to the actors (`fusion.stages.file_scorer`), and facts for people. It is run by `fuseline score` alone
and not a part of recipes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from fusion.artifact import file_sha256, part_name, read_part
from fusion.config import Config
from fusion.errors import StageError
from fusion.placement import ScorePlacement
from fusion.rewards import ModelSettings
from fusion.row_tables import to_table
from fusion.stage import Chunk, StageContext, StageResult
from fusion.stages.score_index import Index, index_of
from fusion.stages.score_input import Format, RowFile, Slice, changed
from fusion.stages.statistics import summary

KIND = "score_file"
VERSION = 1


class ScoreFileConfig(Config):
    """What is scored and how; the reward model itself is the input `reward`."""

    content: str
    """sha256 of the file."""
    format: Format
    """How the file is read."""
    scorer: ModelSettings = Field(discriminator="type")
    """How conversations are rendered, cut and scored."""
    allow_empty: bool = False
    """Score empty responses instead of refusing them."""


class ScoreFilePlacement(ScorePlacement):
    """Where the file is and how the work is spread."""

    source: RowFile
    """The file, readable on all nodes."""
    chunk_rows: int = Field(default=1024, ge=1)
    """Rows of the file in one part; conversations of a part share forward passes."""


def run(ctx: StageContext) -> StageResult:
    """Input: `reward`, the reward model. Output: ItemScore rows in the order of the file.

    Raises:
        InputError: the file cannot be read to its end, or was changed meanwhile.
        StageError: the actors failed.
    """
    index = index_of(ctx.placement.source, ctx.path, slice_rows=ctx.placement.chunk_rows)
    chunks = ctx.plan([part.identity for part in index.slices], chunk_rows=1)
    missing = ctx.missing(chunks)
    todo = sum(index.slices[c.index].responses for c in missing)
    ctx.progress.begin(total=index.responses, done=index.responses - todo)
    if missing:
        _score(ctx, index, missing)
        source: RowFile = ctx.placement.source
        if file_sha256(source.path) != ctx.config.content:
            raise changed(source.path)
    notes = {"rows": index.rows, **_facts(ctx, chunks)}
    return StageResult(rows_in=index.responses, notes=notes, files=("slices.json",))


def _score(ctx: StageContext, index: Index, missing: Sequence[Chunk]) -> None:
    # Ray is imported by the stages that run on it and only then: a hit is found without it.
    from fusion.stages.chunks import map_chunks, wants_gpu
    from fusion.stages.file_scorer import FileScoreActor, FileScorerSettings

    config: ScoreFileConfig = ctx.config
    placement: ScoreFilePlacement = ctx.placement
    gpu = wants_gpu(placement.accelerator)
    settings = FileScorerSettings(
        directory=ctx.path.resolve(),
        source=placement.source,
        scorer=config.scorer,
        allow_empty=config.allow_empty,
        folder=ctx.model_folder("reward"),
        device="cuda" if gpu else "cpu",
        num_threads=max(1, int(placement.cpus)),
    )
    for receipt in map_chunks(
        ctx,
        missing,
        _tables(index, missing),
        FileScoreActor,
        {"settings": settings},
        replicas=placement.replicas,
        num_cpus=placement.cpus,
        num_gpus=1.0 if gpu else 0.0,
    ):
        expected = index.slices[receipt.chunk].responses
        if receipt.rows + receipt.quarantined != expected:
            raise StageError(
                f"{ctx.stage.label}: chunk {receipt.chunk} accounts for {receipt.rows} scores and "
                f"{receipt.quarantined} refusals, but holds {expected} responses"
            )


def _tables(index: Index, chunks: Sequence[Chunk]) -> Iterator[pa.Table]:
    """Yield the work of each chunk: the place of its slice, some hundred bytes however large the file is."""
    for chunk in chunks:
        yield to_table([index.slices[chunk.index]], Slice)


def _facts(ctx: StageContext, chunks: Sequence[Chunk]) -> dict[str, Any]:
    scores, tokens, truncated = [], 0, 0
    for chunk in chunks:
        part = read_part(ctx.path / part_name(chunk.index))
        scores.append(part["score"].to_numpy())
        tokens += int(np.sum(part["tokens"].to_numpy()))
        truncated += int(np.sum(part["truncated"].to_numpy(zero_copy_only=False)))
    every = np.concatenate(scores)
    return {"tokens": tokens, "truncated": truncated, "scores": summary(every) if len(every) else None}
