"""Training objectives: one file per method, and the union of their configs, which is the registry.

A loss is a frozen config that calls one pure function on per-sequence log-probabilities; it holds no
state and knows neither model, optimiser nor batch plan. To add one, write `losses/<name>.py` and put its
class into `Loss` below; the tests that run over the union then demand its arithmetic. Importing this
package does not import torch, so that a recipe loads anywhere.
"""

from typing import Annotated

from pydantic import Field

from fusion.losses.common import Alpha, ConstantAlpha, LinearAlpha, LossOutput, SequenceLogps
from fusion.losses.dpo import DpoLoss
from fusion.losses.sft import SftLoss
from fusion.losses.wrpo import WrpoLoss

LOSSES = (SftLoss, DpoLoss, WrpoLoss)
"""Members of `Loss`, for tests and tables."""

Loss = Annotated[SftLoss | DpoLoss | WrpoLoss, Field(discriminator="type")]

__all__ = [
    "LOSSES",
    "Alpha",
    "ConstantAlpha",
    "DpoLoss",
    "LinearAlpha",
    "Loss",
    "LossOutput",
    "SequenceLogps",
    "SftLoss",
    "WrpoLoss",
]
