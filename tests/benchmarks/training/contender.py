"""What is compared: a way to make one optimizer step of given rows, and the weights that all ways start from.

The one idea: everything that is not the layout is here, once. Every contender has the same weights (deep copies),
the same frozen reference, the same AdamW and the same loss constants; a layout only turns rows into gradients.
Collating, the copy to the device and the reference pass are part of the step of every contender.

The reference is the policy with much noise: with equal weights every log-ratio would be 0 and
every WRPO loss log 2, and the check that all contenders compute the same loss would say nothing.

Legend: B rows, S = 3 * B sequences, T padded length.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from benchmarks.training.flops import Layout, Passes
from benchmarks.training.shapes import PAD_ID, SEED, Batch, Shape, Task

if TYPE_CHECKING:
    import numpy as np

BETA = 0.1
ALPHA = 0.3
LEARNING_RATE = 1e-5
"""So small that the loss after one step is neither the first one again nor all but zero."""

REFERENCE_NOISE = 1.0
"""Standard deviation of the reference's noise, in standard deviations of the weight."""


@dataclasses.dataclass
class Learner:
    """The weights of one contender and what updates them."""

    policy: Any
    """A `transformers` causal language model in training mode."""
    reference: Any
    """The frozen one, shared by all contenders; None for SFT."""
    optimizer: torch.optim.Optimizer
    device: torch.device


class Weights:
    """Makes the learners of one shape."""

    def __init__(self, shape: Shape, *, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import LlamaForCausalLM

        self._shape, self._device = shape, device
        torch.manual_seed(SEED)
        with torch.device(device):
            config = shape.model.config(shape.max_length)
            config.dtype, config._attn_implementation = dtype, "sdpa"
            default = torch.get_default_dtype()
            torch.set_default_dtype(dtype)  # an 8B model must not exist in fp32 on its way
            try:
                self._model = LlamaForCausalLM(config)
            finally:
                torch.set_default_dtype(default)
        self._reference = self._noisy_copy() if shape.task == "wrpo" else None
        self._shared: Learner | None = None

    def learner(self) -> Learner:
        """Return a learner with the initial weights, or the one learner of a shape that shares them."""
        if not self._shape.share_weights:
            return self._learner(copy.deepcopy(self._model), LEARNING_RATE)
        if self._shared is None:
            self._shared = self._learner(self._model, 0.0)
        return self._shared

    def _learner(self, policy: Any, learning_rate: float) -> Learner:
        # Fused, as transformers' Trainer has it: the optimizer's share of a step is the same for all, and small.
        optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
        return Learner(policy.train(), self._reference, optimizer, self._device)

    @torch.no_grad()
    def _noisy_copy(self) -> Any:
        reference = copy.deepcopy(self._model).eval().requires_grad_(False)
        for parameter in reference.parameters():
            if parameter.dim() > 1:  # norms are all ones, without a spread to measure noise in
                parameter.add_(torch.randn_like(parameter), alpha=REFERENCE_NOISE * float(parameter.std()))
        return reference


class Contender(abc.ABC):
    """One way to make a step. Subclasses say how rows become gradients."""

    task: ClassVar[Task]
    same_maths: ClassVar[bool] = True
    """Whether its loss must equal that of the other contenders of the task."""

    def __init__(self, learner: Learner, *, checkpointing: bool = False) -> None:
        self.policy = learner.policy
        self.reference = learner.reference
        self.optimizer = learner.optimizer
        self.device = learner.device
        self.checkpointing = checkpointing

    @abc.abstractmethod
    def backward(self, batch: Batch) -> torch.Tensor:
        """Add the gradients of the batch's mean loss to the policy; return that loss, detached, ()."""

    @abc.abstractmethod
    def layout(self, batch: Batch) -> Layout:
        """Return what a forward pass of the policy over the batch is made of."""

    @abc.abstractmethod
    def passes(self) -> Passes:
        """Return how often a step runs the layout."""

    def prepare(self) -> None:
        """Set the switches of the policy, which contenders may share; not timed."""
        if self.checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.policy.gradient_checkpointing_disable()

    def step(self, batch: Batch) -> float:
        """Make one optimizer step and return the loss before it."""
        loss = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)


def wrpo_loss_from_sums(policy_S: torch.Tensor, reference_S: torch.Tensor) -> torch.Tensor:
    """Return the mean WRPO loss of sequences in the order source x B, target x B, rejected x B.

    For the peers only: ours calls `fusion.losses`, so an error in either would show as a disagreement.
    """
    source_B, target_B, rejected_B = (BETA * (policy_S - reference_S)).chunk(3)
    margins_B = ALPHA * source_B + (1 - ALPHA) * target_B - rejected_B
    return -torch.nn.functional.logsigmoid(margins_B).mean()


def padded_ids(sequences: list[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids and the mask of real tokens, both (S, T) int64 on `device`."""
    width = max(len(ids) for ids in sequences)
    ids_ST = torch.full((len(sequences), width), PAD_ID, dtype=torch.long)
    mask_ST = torch.zeros_like(ids_ST)
    for s, ids in enumerate(sequences):
        ids_ST[s, : len(ids)] = torch.from_numpy(ids)
        mask_ST[s, : len(ids)] = 1
    return ids_ST.to(device), mask_ST.to(device)


def response_mask(prompts: list[int], mask_ST: torch.Tensor) -> torch.Tensor:
    """Return (S, T) bool: the real tokens after each sequence's prompt of `prompts[s]` tokens."""
    positions_T = torch.arange(mask_ST.shape[1], device=mask_ST.device)
    prompts_S1 = torch.tensor(prompts, device=mask_ST.device).unsqueeze(1)
    return mask_ST.bool() & (positions_T >= prompts_S1)
