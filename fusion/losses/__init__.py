"""Training objectives: one file per method, and the union of their configs, which is the registry.

A loss is a frozen config that calls one pure function on per-sequence log-probabilities; it holds no
state and knows neither model, optimiser nor batch plan. To add one, write `losses/<name>.py` and put its
class into `LOSSES` and `Loss` below; the tests that run over `LOSSES` then demand its arithmetic. Importing this
package does not import torch, so that a recipe loads anywhere.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fusion.losses.alpha import Alpha
from fusion.losses.common import LossInputs, LossOutput, SequenceLogps
from fusion.losses.dpo import DpoLoss
from fusion.losses.ipo import IpoLoss
from fusion.losses.ln_dpo import LnDpoLoss
from fusion.losses.rloo import RlooLoss
from fusion.losses.sft import SftLoss
from fusion.losses.simpo import SimpoLoss
from fusion.losses.wrpo import AnyWrpo, WrpoIpoLoss, WrpoLnDpoLoss, WrpoLoss, WrpoSimpoLoss

LOSSES = (
    SftLoss,
    DpoLoss,
    LnDpoLoss,
    IpoLoss,
    SimpoLoss,
    RlooLoss,
    WrpoLoss,
    WrpoLnDpoLoss,
    WrpoIpoLoss,
    WrpoSimpoLoss,
)
"""Members of `Loss`, for tests and tables."""


def _over_dpo(value: Any) -> Any:
    """Read a WRPO loss that names no objective as WRPO over DPO, the paper's."""
    if isinstance(value, dict) and value.get("type") == "wrpo":
        return {"objective": "dpo", **value}
    return value


Loss = Annotated[
    Annotated[
        SftLoss | DpoLoss | LnDpoLoss | IpoLoss | SimpoLoss | RlooLoss | AnyWrpo,
        Field(discriminator="type"),
    ],
    BeforeValidator(_over_dpo),
]

__all__ = [
    "LOSSES",
    "Alpha",
    "DpoLoss",
    "IpoLoss",
    "LnDpoLoss",
    "Loss",
    "LossInputs",
    "LossOutput",
    "RlooLoss",
    "SequenceLogps",
    "SftLoss",
    "SimpoLoss",
    "WrpoIpoLoss",
    "WrpoLnDpoLoss",
    "WrpoLoss",
    "WrpoSimpoLoss",
]
