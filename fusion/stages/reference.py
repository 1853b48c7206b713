"""Stage reference: log-probabilities of the training rows under the frozen start of an arm.

One sum per response is all that a preference loss needs of its reference, so it is computed once, by the
same code as the policy's, and the training loop then holds a single model.
"""

from typing import Literal

from pydantic import Field

from fusion.chat import ChatConfig
from fusion.config import Config
from fusion.stage import StageContext, StageResult
from fusion.stages.training import training_rows
from fusion.train.run import run_reference

VERSION = 3
CHUNK_ROWS = 2048


class ReferenceConfig(Config):
    """Identity of reference log-probabilities, given the model and the rows."""

    chat: ChatConfig
    """How conversations are rendered for the model."""
    max_length: int = Field(ge=2)
    """Tokens of prompt plus response; longer rows are refused here as in training."""
    precision: Literal["fp32", "bf16"]
    """As in training, so that policy and reference are equal before the first step."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `model` and `rows` (any preference rows)."""
    rows, row_type = training_rows(ctx)
    chunks = ctx.plan([row.row_id for row in rows], chunk_rows=CHUNK_ROWS)
    outcome = run_reference(
        directory=ctx.path,
        model_folder=ctx.model_folder("model"),
        chat_config=ctx.config.chat,
        rows=rows,
        row_type=row_type,
        chunks=[(c.index, c.start, c.stop) for c in chunks],
        max_length=ctx.config.max_length,
        precision=ctx.config.precision,
        placement=ctx.placement,
        progress=ctx.progress,
    )
    return StageResult(rows_in=outcome.rows_in)
