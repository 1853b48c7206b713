"""How much memory a training worker will need, before it starts; and how much it has needed, afterwards.

The estimate adds up what has a size that one can know: weights, gradients and optimizer state as DeepSpeed lays them
out, saved activations of one forward pass, the logits, and what libraries take for themselves. It is a sum of peaks that
need not come together, and allocators waste some: expect the measurement within a factor of 1.5 of it. All sizes are
bytes per worker.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.errors import ModelError
from fusion.training import TrainConfig, TrainPlacement

if TYPE_CHECKING:
    import torch

GIB = 2**30
MEMORY = "memory.json"
"""Of the training directory: what was estimated and what was measured."""
OPTIMIZER_BYTES = 12
"""Per parameter: AdamW's two averages and the fp32 weights that ZeRO updates, beside those of the model."""
BUCKET_NUMEL = 500_000_000
"""Gradients that are flattened into one buffer before they are reduced (DeepSpeed's default)."""
LIVE_NUMEL = 1_000_000_000
"""Weights that ZeRO-3 keeps gathered during a pass (DeepSpeed's default)."""
LIBRARIES = 100 * 2**20
"""Measured on CPUs: what a worker imports while it trains."""


@dataclasses.dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bytes of fp32 logits that the fused head has at a time.

    Example: over 128k tokens of vocabulary a group is 262 response tokens, and a row of up to 1048 is held whole.
    """

    group: int = 128 * 2**20
    """Rows are put together up to this: below about 200 tokens products lose speed, beyond 400 they gain none."""
    row: int = 512 * 2**20
    """One row is held whole up to this, and gone through twice, a group's size at a time, above."""

    def most_tokens(self, num_tokens: int, *, vocabulary: int) -> int:
        """Return how many tokens of a group of `num_tokens` have their logits at one time."""
        if num_tokens <= max(self.group, self.row) // (4 * vocabulary):
            return max(1, num_tokens)
        return max(1, self.group // (4 * vocabulary))


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes of a model folder. Example: Llama-3-8B has 8.03e9 parameters, 32 layers of 4096 and 14336, 128256 tokens."""

    num_parameters: int
    num_layers: int
    hidden: int
    intermediate: int
    kv_hidden: int
    """Width of the keys: heads for keys times their size."""
    vocab: int


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes per worker, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    libraries: int = LIBRARIES

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in dataclasses.asdict(self).items())
        return f"{gib(self.total)} ({parts})"


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def model_size(folder: Path) -> ModelSize:
    """Read the sizes of a Hugging Face folder from config.json and the headers of its safetensors files."""
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = facts.get("text_config", facts)
    heads = facts.get("num_attention_heads", facts.get("n_head", 1))
    hidden = facts.get("hidden_size", facts.get("n_embd"))
    layers = facts.get("num_hidden_layers", facts.get("n_layer"))
    if hidden is None or layers is None:
        raise ModelError(f"{folder / 'config.json'} names no hidden_size or num_hidden_layers")
    head = facts.get("head_dim") or hidden // heads
    return ModelSize(
        num_parameters=sum(_num_parameters(file) for file in sorted(folder.glob("*.safetensors"))),
        num_layers=layers,
        hidden=hidden,
        intermediate=facts.get("intermediate_size") or 4 * hidden,
        kv_hidden=(facts.get("num_key_value_heads") or heads) * head,
        vocab=facts["vocab_size"],
    )


def _num_parameters(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with file.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def estimate(
    size: ModelSize, config: TrainConfig, placement: TrainPlacement, *, pass_tokens: int, row_tokens: int
) -> MemoryEstimate:
    """Return what one worker will need at its peak.

    Args:
        pass_tokens: most tokens of one forward pass on one worker.
        row_tokens: most response tokens of one row.
    """
    shards, stage, parameters = placement.workers, placement.zero_stage, size.num_parameters
    trained = parameters if config.lora is None else _num_adapters(size, config.lora.rank)
    width = 2 if config.precision == "bf16" else 4
    sharded = parameters / shards
    weights = (sharded + min(parameters, LIVE_NUMEL) if stage == 3 else parameters) * width
    # Gradients exist as the backward pass makes them and as a flat buffer that reduces them; ZeRO-2 and 3 keep a shard.
    bucket = min(trained, BUCKET_NUMEL)
    gradients = (trained + bucket if stage == 1 else trained / shards + 2 * bucket) * width
    # Saved per token and layer, in numbers: two norms (each its input, twice in fp32 under bf16), the three projections
    # before and after rotation, attention's output, and the four intermediate values of a gated MLP.
    layer = (8 * size.hidden + 4 * size.kv_hidden + 4 * size.intermediate) * width
    if placement.gradient_checkpointing:
        activations = pass_tokens * (size.num_layers * size.hidden * width + layer)
    else:
        activations = pass_tokens * size.num_layers * layer
    # The fused head: fp32 logits of one group of rows, which become their own gradient, and the weight's gradient in fp32.
    limits = HeadLimits()
    row = 4 * size.vocab * limits.most_tokens(row_tokens, vocabulary=size.vocab)
    head = min(4 * size.vocab * pass_tokens, max(limits.group, row))
    if config.lora is None:
        head += 4 * size.vocab * size.hidden
    return MemoryEstimate(
        int(weights), int(gradients), int(OPTIMIZER_BYTES * trained / shards), int(activations), int(head)
    )


def _num_adapters(size: ModelSize, rank: int) -> int:
    """Weights of adapters on all linear layers of a gated transformer: rank * (inputs + outputs) of each."""
    attention = 2 * (2 * size.hidden) + 2 * (size.hidden + size.kv_hidden)
    return size.num_layers * rank * (attention + 3 * (size.hidden + size.intermediate))


def too_large(need: MemoryEstimate, available: int, *, workers_here: int, where: str) -> str | None:
    """Say what to change where `workers_here` workers of this size do not fit into `available` bytes."""
    if need.total * workers_here <= available:
        return None
    state = need.weights + need.gradients + need.optimizer
    advice = (
        "lower placement.train.tokens_per_micro_batch or set gradient_checkpointing"
        if need.activations + need.head > state
        else "use more workers on other machines, a higher zero_stage, or a smaller model"
    )
    return (
        f"training will need about {need} per worker, {workers_here} of them on {where}, which has {gib(available)} "
        f"available: {advice}"
    )


# ---- measuring --------------------------------------------------------------------------------


def available_here() -> int | None:
    """Bytes of memory that this machine can give now; None where /proc does not say."""
    return _proc("/proc/meminfo", "MemAvailable")


def resident() -> int:
    """Bytes of memory of this process; 0 where /proc does not say."""
    return _proc("/proc/self/status", "VmRSS") or 0


def reset_peak() -> None:
    """Begin a new high-water mark of this process's memory."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        try:
            file.write_text("5")
        except OSError:  # not allowed in some containers: the mark then includes the imports
            return


def peak() -> int:
    """Bytes of the high-water mark of this process; 0 where /proc does not say."""
    return _proc("/proc/self/status", "VmHWM") or 0


class Meter:
    """Measures what a worker takes from here on, beyond what it has."""

    def __init__(self, device: "torch.device") -> None:
        self._device = device
        self._base = resident()
        reset_peak()

    @property
    def device_name(self) -> str:
        """What the memory is of. Example: "cpu", "cuda:1"."""
        return str(self._device)

    def used(self) -> int:
        """Bytes at the peak since the start: of the GPU where there is one, else of the process."""
        if self._device.type == "cuda":
            import torch  # only on GPUs; the estimate itself is used on machines without torch

            return torch.cuda.max_memory_allocated(self._device)
        return max(0, peak() - self._base)

    def available(self) -> int | None:
        """Bytes that the GPU or the machine can give now."""
        if self._device.type == "cuda":
            import torch  # as in used()

            return torch.cuda.mem_get_info(self._device)[0]
        return available_here()


def _proc(file: str, name: str) -> int | None:
    path = Path(file)
    if not path.exists():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else None
