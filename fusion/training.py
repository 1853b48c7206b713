"""What people say about training: `TrainConfig` defines the result, `TrainPlacement` where and how fast.

Only these two live here, without torch, Ray or DeepSpeed, because recipes import them.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from fusion.config import Config, Placement
from fusion.losses import Loss


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
    seed: int = Field(default=0, ge=0)
    """Order of the rows."""

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
    tokens_per_micro_batch: int = Field(default=4096, ge=1)
    """Padded tokens per worker and forward pass; a row longer than that gets a micro-batch of its own."""
    checkpoint_every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between checkpoints, which is the most that a kill can cost."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep while training; all are removed when the model is saved."""
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
