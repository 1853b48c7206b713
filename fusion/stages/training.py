"""What sft, reference and prefer share: reading their rows, and handing a training run to `fusion.train`."""

import dataclasses
from collections.abc import Mapping, Sequence

from fusion import rows as row_types
from fusion.errors import StageError
from fusion.stage import StageContext, StageResult
from fusion.train.run import run_training


def training_rows(ctx: StageContext) -> tuple[list, type]:
    """Return the rows of the input `rows` and their type, as its manifest states it."""
    name = ctx.artifact("rows").manifest.row_type
    row_type = next(t for t in row_types.TRAINING_ROWS if t.__name__ == name)
    rows = list(ctx.rows("rows", row_type))
    if not rows:
        raise StageError(
            f"{ctx.stage.label}: the selection {ctx.artifact('rows').path} holds no row; its manifest counts the drops "
            "by reason"
        )
    return rows, row_type


def train(ctx: StageContext, *, reference: Mapping[str, Mapping[str, Sequence[float]]] | None) -> StageResult:
    """Train the model of `ctx` on its rows; the result is the folder `model` in the stage's directory."""
    rows, row_type = training_rows(ctx)
    outcome = run_training(
        directory=ctx.path,
        model_folder=ctx.model_folder("model"),
        chat_config=ctx.config.chat,
        rows=rows,
        row_type=row_type,
        reference_logps=reference,
        config=ctx.config.train,
        placement=ctx.placement,
        progress=ctx.progress,
    )
    model_files = sorted(str(p.relative_to(ctx.path)) for p in (ctx.path / "model").rglob("*") if p.is_file())
    return StageResult(
        rows_in=outcome.rows_in,
        rows_out=outcome.rows_trained + outcome.rows_held_out,
        quarantined=outcome.dropped,
        notes={
            "steps": outcome.steps,
            "num_tokens": outcome.num_tokens,
            "final_metrics": outcome.final_metrics,
            "held_out_rows": outcome.rows_held_out,
            "kept_step": outcome.kept_step,
            "layout": outcome.layout,
            "memory": outcome.memory,
            "alarms": [dataclasses.asdict(alarm) for alarm in outcome.alarms],
            "warnings": [dataclasses.asdict(warning) for warning in outcome.warnings],
        },
        files=("metrics.jsonl", *model_files),
    )
