"""The tensors of an ArmoRM; imported by `ArmoSettings.load` only. The formula and its sources are in `armorm.py`.

Two forms of the formula: `GatedRewardModel.forward`, one conversation alone and written as it is published, and
`GatedHead`, row by row for passes of many conversations. `classifier.py` holds the second against the first when a model
is loaded. The gate of a prompt is computed once for all its responses.
Legend: as in `classifier.py`; J objectives, U distinct tokens that gates are read at.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from fusion.errors import ModelError
from fusion.models import check_folder
from fusion.rewards.armorm import ARCHITECTURE, OPENING, is_armorm, last_opening, objective_names
from fusion.rewards.classifier import Classifier, last_token, row_by_row
from fusion.rewards.loading import load_config, load_weights
from fusion.sampling import Precision


class GatingNetwork(nn.Module):
    """h (H,) -> the weight of each objective (J,): linear layers with ReLU between them, a softmax, a scale."""

    def __init__(self, config: LlamaConfig, num_objectives: int) -> None:
        super().__init__()
        self.temperature = float(getattr(config, "gating_temperature", 10))
        self.logit_scale = nn.Parameter(torch.ones(1))
        hidden = getattr(config, "gating_hidden_dim", 1024)
        sizes = [config.hidden_size, *[hidden] * getattr(config, "gating_n_hidden", 3), num_objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, hidden_H: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            hidden_H = functional.relu(layer(hidden_H))
        return functional.softmax(self.layers[-1](hidden_H) / self.temperature, dim=-1) * self.logit_scale


class GatedRewardModel(LlamaPreTrainedModel):
    """The published model; its parameters have the names that they have in the checkpoint."""

    # The output layers, whatever the precision of the trunk.
    _keep_in_fp32_modules_strict = ["regression_layer", "gating", "reward_transform_matrix"]

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        num_objectives = getattr(config, "num_objectives", 19)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(num_objectives), requires_grad=False)
        self.gating = GatingNetwork(config, num_objectives)
        self.post_init()

    def forward(self, input_ids: Tensor, last: int, gate: int) -> Tensor:
        """Return score and rewards, (1 + J,) in float32, of one conversation (1, T) without padding.

        Args:
            last: position that the rewards are read at.
            gate: position that the gate is read at.
        """
        hidden_TH = self.model(input_ids=input_ids, use_cache=False).last_hidden_state[0].float()
        rewards_J = self.regression_layer(hidden_TH[last])
        score = (self.gating(hidden_TH[gate]) * (rewards_J @ self.reward_transform_matrix)).sum()
        return torch.cat([score[None], rewards_J])


class GatedHead:
    """The output layers of an ArmoRM, for passes of many conversations."""

    def __init__(self, model: GatedRewardModel, names: Sequence[str], opening: tuple[int, ...]) -> None:
        self._model = model
        self._pad_token_id: int | None = model.config.pad_token_id
        self._rewards_JH = model.regression_layer.weight.detach().float()
        self._transform_JJ = model.reward_transform_matrix.detach().float().T.contiguous()
        self._layers: list[Any] = list(model.gating.layers)
        self.opening = opening
        self.outputs = ("score", *names)

    def places(self, ids: Sequence[int]) -> tuple[int, int]:
        """Return where the rewards and where the gate are read."""
        gate = last_opening(ids, self.opening)
        assert gate is not None, "ids with a fault are not scored"
        return last_token(ids, self._pad_token_id), gate

    def fault(self, ids: Sequence[int]) -> str | None:
        if last_opening(ids, self.opening) is not None:
            return None
        return f"it does not hold {OPENING!r}, where the gate is read"

    def __call__(self, hidden_NH: Tensor, places_SP: Tensor) -> Tensor:
        """Return score and rewards, (S, 1 + J)."""
        rewards_SJ = row_by_row(hidden_NH[places_SP[:, 0]], self._rewards_JH)
        gates_U, gate_of_S = places_SP[:, 1].unique(return_inverse=True)
        gates_UJ = torch.cat([self._gate(hidden_NH[place][None]) for place in gates_U])
        scores_S = (gates_UJ[gate_of_S] * row_by_row(rewards_SJ, self._transform_JJ)).sum(-1)
        return torch.cat([scores_S[:, None], rewards_SJ], dim=1)

    def _gate(self, hidden_1H: Tensor) -> Tensor:
        """Return (1, J). One prompt at a time: the first layer alone has as many products as it has weights."""
        *inner, last = self._layers
        for layer in inner:
            hidden_1H = functional.relu(row_by_row(hidden_1H, layer.weight) + layer.bias)
        logits_1J = row_by_row(hidden_1H, last.weight) + last.bias
        gating = self._model.gating
        return functional.softmax(logits_1J / gating.temperature, dim=-1) * gating.logit_scale

    def plain(self, ids_1T: Tensor) -> Tensor:
        """Return the outputs of the model's own forward for one conversation."""
        return self._model(ids_1T, *self.places(ids_1T[0].tolist()))


def load_armorm(
    folder: Path, opening: tuple[int, ...], *, dtype: Precision, device: str, tokens_per_forward: int
) -> Classifier:
    """Load a Hugging Face folder without its remote code.

    Args:
        opening: ids of `OPENING` in its tokenizer.

    Raises:
        ModelError: another architecture, or weights missing, left over or of other shapes.
    """
    check_folder(folder)
    config = load_config(folder)
    facts, file = config.to_dict(), folder / "config.json"
    if not is_armorm(facts):
        found = (facts.get("architectures") or ["unknown"])[0]
        raise ModelError(f"{file}: {found} is not an ArmoRM, which is a {ARCHITECTURE}; write another type")
    if not isinstance(config, LlamaConfig):
        raise ModelError(f"{file}: model_type is {config.model_type}; an ArmoRM has the trunk of a llama")
    _check_gating(config, file)
    names = objective_names(facts, file)
    model: Any = load_weights(GatedRewardModel, folder, config, dtype=dtype).eval().to(device)
    head = GatedHead(model, names, opening)
    return Classifier.ready(model, head, folder=folder, tokens_per_forward=tokens_per_forward)


def _check_gating(config: LlamaConfig, file: Path) -> None:
    for name, usual, kinds, what in (
        ("gating_temperature", 10, (int, float), "number"),
        ("gating_hidden_dim", 1024, (int,), "whole number"),
        ("gating_n_hidden", 3, (int,), "whole number"),
    ):
        value = getattr(config, name, usual)
        if type(value) not in kinds:
            raise ModelError(f"{file}: {name} is {value!r}; it must be a {what}")
        if value < 0 or (value == 0 and name != "gating_n_hidden"):
            raise ModelError(f"{file}: {name} is {value}; it must be above 0")
