"""Stage prefer: preference optimisation of one arm, with the reference read from its own stage."""

from fusion.chat import ChatConfig
from fusion.config import Config
from fusion.errors import StageError
from fusion.rows import ReferenceLogps
from fusion.stage import StageContext, StageResult
from fusion.stages.training import train
from fusion.training import TrainConfig

VERSION = 2


class PreferConfig(Config):
    """Identity of a preference-trained model, given its start, its rows and their reference."""

    train: TrainConfig
    """Objective, optimiser, schedule, batch, lengths and seed."""
    chat: ChatConfig
    """How conversations are rendered for the model."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `model` (start), `rows`, and `reference` (ReferenceLogps) where the loss needs one."""
    reference = None
    if "reference" in ctx.inputs:
        reference = {row.row_id: row.logps for row in ctx.rows("reference", ReferenceLogps)}
        if not reference:
            raise StageError(f"{ctx.stage.label}: the reference stage has no row left; see its quarantine.jsonl")
    return train(ctx, reference=reference)
