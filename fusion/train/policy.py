"""From a causal language model to one log-probability per response; policy and reference share every line.

The one idea: the trunk runs over a packed pass (`packing.py`), hidden states are gathered where a response token is
predicted, and the fused head (`head.py`) runs on those rows alone. What a family does otherwise than we think is found
by a probe before the first step: packed log-probabilities against those of the model's own forward pass, one response
at a time. Where they differ, the next simpler passes are taken, and the training says so.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fusion.errors import ModelError
from fusion.packed import attention
from fusion.packed.last_mlp import LastMlp
from fusion.train.encode import EncodedRow
from fusion.train.head import HeadJob, LogitRule, Objective, run_head
from fusion.train.memory import HeadLimits
from fusion.train.packing import Layout, PackedBatch, pack

log = logging.getLogger(__name__)


def load_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model for training: all dropout and router noise off, no cache, local files only."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    facts = config.to_dict()
    # Log-ratios need policy and reference to differ only by weights, so nothing is dropped at random.
    off = {name: 0.0 for name, value in facts.items() if name.endswith(("dropout", "_pdrop", "jitter_noise")) and value}
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention.own_attention(facts),
        local_files_only=True,
        use_safetensors=True,
        **off,
    )
    model.config.use_cache = False
    return model


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters and leave buffers alone, as DeepSpeed does, so that policy and reference compute alike."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


class PolicyModel(nn.Module):
    """The model as a module whose forward gives loss and log-probabilities, so that DeepSpeed wraps one call."""

    def __init__(
        self, model: PreTrainedModel, *, layout: Layout = Layout.shared, limits: HeadLimits | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.rule = LogitRule.of(model.config.get_text_config().to_dict())
        self.limits = limits or HeadLimits()
        self._last_mlp = LastMlp.of(model.get_decoder())
        self.skips_unread = True
        """Whether the last feed-forward block, where it is known, leaves out what nothing reads; the probe decides."""
        self.use(layout)

    def use(self, layout: Layout) -> None:
        """Take the attention that a layout needs."""
        self.layout = layout
        if self._last_mlp is not None:
            self._last_mlp.needed = None
        facts = self.model.config.get_text_config().to_dict()
        self.model.set_attn_implementation(
            attention.own_attention(facts) if layout is Layout.padded else attention.NAME
        )

    def forward(self, batch: PackedBatch, objective: Objective | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and (S,) float64 log pi(response | prompt), sums over response tokens, in nats.

        The loss is () and carries gradients; without objective it is 0 and the pass needs none.
        """
        assert (batch.trees is None) == (self.layout is Layout.padded), self.layout
        packed = {} if batch.trees is None else {"trees": batch.trees}
        if self._last_mlp is not None:
            self._last_mlp.needed = batch.needed if self.skips_unread else None
        hidden_WTH = self.model.get_decoder()(
            input_ids=batch.ids_WT,
            position_ids=batch.positions_WT,
            attention_mask=batch.mask_WT,
            use_cache=False,
            **packed,
        ).last_hidden_state
        hidden_NH = hidden_WTH.flatten(0, 1)[batch.predict_N]
        return run_head(self._head(), hidden_NH, HeadJob(batch, self.rule, objective, self.limits))

    def _head(self) -> nn.Module:
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(self.model).__name__} has no language-modelling head; it cannot be trained here")
        if not isinstance(head, nn.Linear):
            raise ModelError(f"{type(self.model).__name__}: its head is a {type(head).__name__}, not a linear layer")
        return head


# ---- the probe --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What the probe found."""

    layout: Layout
    refused: tuple[str, ...] = ()
    """Why faster passes were passed over, in order."""


def choose_layout(policy: PolicyModel, *, name: str) -> Probe:
    """Give the policy the fastest passes that compute what the model's own forward pass computes, and say which.

    Raises:
        ModelError: not even padded passes do: the family does something to its logits that training does not know.
    """
    rows = _probe_rows(policy.model.config.get_text_config().vocab_size)
    policy.use(Layout.padded)
    expected_S = torch.stack(
        [_plain_logp(policy.model, row.prompt_ids, ids) for row in rows for ids in _responses(row)]
    )
    refused: list[str] = []
    for layout in Layout:
        policy.use(layout)
        fault = shortcut = _fault(policy, rows, expected_S, skips_unread=True)
        if shortcut is not None:  # a block that does not work token by token says nothing against the layout
            fault = _fault(policy, rows, expected_S, skips_unread=False)
            if fault is None:
                refused.append(f"the last feed-forward block runs on every token: {shortcut}")
        if fault is None:
            for reason in refused:
                log.warning("%s: %s", name, reason)
            return Probe(layout, tuple(refused))
        refused.append(f"layout {layout} is not used: {fault}")
    raise ModelError(
        f"{name}: {type(policy.model).__name__} does something to its logits that training does not know "
        f"({refused[-1]}); this family is not supported yet"
    )


def _probe_rows(vocab_size: int) -> list[EncodedRow]:
    """Two rows of three responses each, long enough for a short window and short enough to cost nothing."""

    def ids(start: int, length: int) -> np.ndarray:
        return (np.arange(start, start + length) * 7 + 3) % vocab_size

    return [
        EncodedRow("probe", 1.0, ids(s, 5 + s), {"probe": (ids(s + 11, 4), ids(s + 23, 7), ids(s + 31, 1))}, {})
        for s in (0, 2)
    ]


def _responses(row: EncodedRow) -> tuple[np.ndarray, ...]:
    return tuple(ids for group in row.responses.values() for ids in group)


@torch.no_grad()
def _plain_logp(model: PreTrainedModel, prompt_ids: np.ndarray, response_ids: np.ndarray) -> torch.Tensor:
    """One response through the model's own forward pass, logits and all."""
    ids_T = torch.from_numpy(np.concatenate([prompt_ids, response_ids])).to(model.device)
    logits_TV = model(input_ids=ids_T[None], attention_mask=torch.ones_like(ids_T)[None], use_cache=False).logits[0]
    logps_TV = torch.log_softmax(logits_TV.double(), -1)
    start = len(prompt_ids)
    return logps_TV[start - 1 : -1].gather(-1, ids_T[start:, None]).sum()


@torch.no_grad()
def _fault(policy: PolicyModel, rows: list[EncodedRow], expected_S: torch.Tensor, *, skips_unread: bool) -> str | None:
    """What is wrong with passes of the policy's present layout; None = nothing."""
    policy.skips_unread = skips_unread
    batch = pack(rows, layout=policy.layout, group_roles=frozenset({"probe"})).to(policy.model.device)
    try:
        _, found_S = policy(batch)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        # Whatever a family's code says to a packed pass, the answer is the same: another layout.
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no text'])[0]}"
    tolerance = 1e-4 if policy.model.dtype in (torch.float32, torch.float64) else 5e-2
    if torch.allclose(found_S, expected_S, rtol=tolerance, atol=tolerance):
        return None
    worst = int((found_S - expected_S).abs().argmax())
    return f"a log-probability of {found_S[worst]:.6g} where the model's own forward gives {expected_S[worst]:.6g}"
