"""Stage sft: fine-tune a model on the chosen responses, loss on response tokens only."""

from fusion.chat import ChatConfig
from fusion.config import Config
from fusion.stage import StageContext, StageResult
from fusion.stages.training import train
from fusion.training import TrainConfig

VERSION = 2


class SftConfig(Config):
    """Identity of a fine-tuned model, given its start and its rows."""

    train: TrainConfig
    """Objective (`sft`), optimiser, schedule, batch, lengths and seed."""
    chat: ChatConfig
    """How conversations are rendered for the model."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `model` (start) and `rows` (SftExample or WeightedResponses)."""
    return train(ctx, reference=None)
