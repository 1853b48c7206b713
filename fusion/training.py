"""What people say about training: `TrainConfig` defines the result, `TrainPlacement` where and how fast.

Only these two live here, without torch, Ray or DeepSpeed, because recipes import them.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from fusion.config import Config, Placement
from fusion.losses import Loss


class Lora(Config):
    """Train low-rank adapters and merge them into the weights at the end; everything else stays frozen."""

    rank: int = Field(ge=1)
    """Rank of each adapter."""
    alpha: int = Field(ge=1)
    """An adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Last names of the linear layers that get one, e.g. q_proj and v_proj; none named = all but the head."""


class HeldOut(Config):
    """Rows that are never trained on, how often they are asked about, and whether they choose the weights."""

    rows: int | None = Field(default=None, ge=1)
    """Number of rows to hold out, a few more where the last prompt has several; give this or `share`."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the rows to hold out, each prompt decided by itself, so that more rows do not move older ones."""
    every: int = Field(default=100, ge=1)
    """Optimizer steps between evaluations; one more follows the last step. Each is also a checkpoint."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """alpha of the evaluations, for losses that have one; by default that of the last step. It is the same at every
    evaluation, because values at different steps could not be compared otherwise."""
    metric: Literal["loss", "rewards/accuracies", "rewards/margins"] = "loss"
    """What makes an evaluation better: a lower loss, or a higher one of the others."""
    keep: Literal["last", "best"] = "last"
    """Weights of the trained model: those after the last step, or of the best of the last `among` evaluations."""
    among: int = Field(default=2, ge=1)
    """How many of the last evaluations `best` chooses from; FuseChat-3.0 takes the best of the last two."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.rows is None) == (self.share is None):
            raise ValueError("held_out needs either rows or share, e.g. {rows: 64, every: 100}")
        return self


class TrainConfig(Config):
    """Everything that defines a trained model, given its data and its start."""

    loss: Loss
    """The objective; it says which rows it reads and whether it needs a reference."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rows."""
    global_batch: int = Field(ge=1)
    """Prompts per optimizer step, over all workers."""
    max_length: int = Field(ge=2)
    """Tokens of prompt plus response; a row with a longer one is dropped and counted, never cut."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warmup; cosine and linear end at 0."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the optimizer steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW, on all parameters."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two averages."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this global norm; 0 switches clipping off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Weights and activations; bf16 keeps fp32 master weights, and the log-softmax and sums are always fp32."""
    lora: Lora | None = None
    """Adapters in place of full fine-tuning; null trains all weights."""
    seed: int = Field(default=0, ge=0)
    """Order of the rows, which of them are held out, and the start of adapters."""
    held_out: HeldOut | None = None
    """Rows to evaluate on while training; none by default, and the last step's weights are kept."""

    @model_validator(mode="after")
    def _evaluation_fits_the_loss(self) -> Self:
        if self.held_out is None:
            return self
        if self.held_out.alpha is not None and "alpha" not in type(self.loss).model_fields:
            raise ValueError(f"held_out.alpha: the loss {self.loss.type!r} has no alpha; leave it out")
        if self.held_out.metric != "loss" and self.loss.type == "sft":
            raise ValueError(f"held_out.metric: sft has no {self.held_out.metric}; use metric: loss")
        return self

    @model_validator(mode="after")
    def _betas_are_rates(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas {self.adam_betas} must both be at least 0 and below 1")
        return self


class TrainPlacement(Placement):
    """Where training runs and how its work is cut; never changes the result beyond rounding."""

    workers: int = Field(default=1, ge=1)
    """Training processes; on GPUs one per `gpus_per_worker`."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes GPUs where the cluster has enough of them for all workers."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed spreads over workers: 1 optimizer state, 2 also gradients, 3 also weights."""
    offload: Literal["none", "optimizer", "optimizer_and_weights"] = "none"
    """What GPUs keep in the memory of their host; weights with ZeRO-3 only."""
    tokens_per_micro_batch: int = Field(default=4096, ge=1)
    """Tokens per worker and forward pass, a prompt counted once for all its responses; a row longer than that gets a
    pass of its own."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between checkpoints, which is the most that a kill can cost."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep while training, besides the best one and those that `held_out` chooses from; all are
    removed when the model is saved."""
    max_failures: int = Field(default=3, ge=0)
    """How often Ray Train starts the workers again after one died."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs that Ray reserves per worker."""
    gpus_per_worker: float = Field(default=1, gt=0)
    """GPUs that Ray reserves per worker when training runs on GPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, 1.15 to 1.25 times the time."""
    log_every: int = Field(default=1, ge=1)
    """Optimizer steps between lines of metrics.jsonl."""

    @model_validator(mode="after")
    def _offload_fits(self) -> Self:
        if self.offload != "none" and self.accelerator == "cpu":
            raise ValueError(f"offload {self.offload} moves state from a GPU to its host; accelerator cpu has none")
        if self.offload == "optimizer_and_weights" and self.zero_stage != 3:
            raise ValueError(f"offload {self.offload} needs zero_stage 3, which alone spreads weights")
        return self
