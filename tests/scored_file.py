"""A file of rows scored in this process, without Ray: the real stage, index, actor and model."""

from pathlib import Path

from fusion.artifact import Artifact, file_sha256
from fusion.models import ModelRef, PinnedModel
from fusion.rewards import RewardModelSettings
from fusion.rewards.family import settings_for
from fusion.row_tables import to_table
from fusion.stage import Stage, StageContext, StageResult, run_stage
from fusion.stages import score_file
from fusion.stages.file_scorer import FileScoreActor, FileScorerSettings, ItemScore
from fusion.stages.score_index import Index, index_of
from fusion.stages.score_input import RowFile, Slice, open_rows


def score_here(
    path: Path, folder: Path, work: Path, *, chunk_rows: int = 4, **config
) -> tuple[Artifact, RowFile, Index]:
    """Score a file; return the artifact, the file and its index."""
    source, scorer = open_rows(path), settings_for(folder, RewardModelSettings())

    def run(ctx: StageContext) -> StageResult:
        index = index_of(source, ctx.path, slice_rows=chunk_rows)
        actor = FileScoreActor(
            settings=FileScorerSettings(
                ctx.path, source, scorer, ctx.config.allow_empty, folder, device="cpu", num_threads=1
            )
        )
        chunks = ctx.plan([part.identity for part in index.slices], chunk_rows=1)
        for chunk in ctx.missing(chunks):
            actor.run_chunk(chunk.index, to_table([index.slices[chunk.index]], Slice))
        return StageResult(rows_in=index.responses, notes={"rows": index.rows})

    reward = PinnedModel("reward", ModelRef(path=folder), work / "digests.json")
    stage = Stage(
        score_file.KIND, "rm", score_file.VERSION,
        score_file.ScoreFileConfig(content=file_sha256(path), format=source.format, scorer=scorer, **config),
        {"reward": reward}, run, ItemScore, placement=score_file.ScoreFilePlacement(source=source, chunk_rows=chunk_rows),
    )  # fmt: skip
    artifact, _ = run_stage(stage, work, inputs={"reward": reward}, report=lambda _: None, resume_command="again")
    return artifact, source, index_of(source, artifact.path, slice_rows=chunk_rows)
