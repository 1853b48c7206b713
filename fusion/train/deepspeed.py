"""DeepSpeed as this project uses it: sharded AdamW, caller-owned step boundaries, and nothing implicit.

Facts that cost time to find, each used below:
- `managed_gradient_accumulation: false` makes `engine.step()` the boundary, so that steps may have different
  numbers of forward passes; `backward(scale_wrt_gas=False)` leaves the loss as given; gradients are averaged over
  workers, so losses that are already divided by the global mass are multiplied by the number of workers.
- Clipping is on by default at 1.0: it is always written.
- Importing the engine imports an optimizer that compiles a function at once: three seconds for nothing.
- On CPUs the first start compiles a shared-memory extension for about a minute; it is declared incompatible.
"""

import importlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fusion.artifact import fsync
from fusion.errors import StageError
from fusion.training import TrainConfig, TrainPlacement


def engine_config(config: TrainConfig, placement: TrainPlacement, *, on_gpu: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the learning rate is set by the loop before each step."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # a formality: the loop owns batches and step boundaries
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        # Gradients of several passes add up in fp32 whatever the weights are.
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "betas": list(config.adam_betas),
                "eps": config.adam_eps,
                "weight_decay": config.weight_decay,
                "torch_adam": True,  # the fused one is compiled on first use
                "adam_w_mode": True,
            },
        },
        "zero_optimization": {
            "stage": placement.zero_stage,
            "overlap_comm": on_gpu and placement.zero_stage == 2,
            "contiguous_gradients": True,
            "stage3_param_persistence_threshold": 10_000,
            **_offload(placement),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the same reason as torch_adam
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def _offload(placement: TrainPlacement) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": True}
    parts = {"none": (), "optimizer": ("optimizer",), "optimizer_and_weights": ("optimizer", "param")}
    return {f"offload_{part}": host for part in parts[placement.offload]}


def initialize(module: nn.Module, config: TrainConfig, placement: TrainPlacement, *, on_gpu: bool) -> Any:
    """Return a DeepSpeed engine around `module`, in the process group that Ray Train has made."""
    # In the worker only: importing DeepSpeed probes compilers and devices, which planning must not need.
    import deepspeed
    import deepspeed.ops

    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],  # type: ignore[arg-type]  # annotated as Module
        config=engine_config(config, placement, on_gpu=on_gpu),
        dist_init_required=False,
    )
    return engine


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer, which every engine does, without what it asks of torch.compile at import.

    The optimizer is not used here; the compiler's import would cost each worker three seconds.
    """
    compile_ = torch.compile
    torch.compile = lambda *arguments, **keywords: arguments[0] if arguments else lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        torch.compile = compile_


def set_learning_rate(engine: Any, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def full_state_dict(model: PreTrainedModel, *, zero_stage: int, rank: int) -> dict[str, torch.Tensor] | None:
    """Return all weights on the CPU of rank 0 and None elsewhere; every rank must call it.

    Tied weights appear once. Under ZeRO-3 one parameter at a time is gathered, so that no worker holds the model.

    Raises:
        StageError: a gathered weight has not its full shape.
    """
    weights: dict[str, torch.Tensor] = {}
    if zero_stage < 3:
        for name, parameter in model.named_parameters():
            weights[name] = parameter.detach()
    else:
        import deepspeed  # in the worker only, as above

        for name, parameter in model.named_parameters():
            full_shape = parameter.ds_shape  # type: ignore[attr-defined]
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank == 0:
                    weights[name] = parameter.detach().cpu().clone()
            if rank == 0 and weights[name].shape != full_shape:
                raise StageError(f"{name} was gathered as {tuple(weights[name].shape)} instead of {tuple(full_shape)}")
    if rank != 0:
        return None
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in stored:
            weights[name] = buffer.detach()
    return {name: weight.cpu().contiguous() for name, weight in weights.items()}


def commit_folder(model: PreTrainedModel, weights: dict[str, torch.Tensor], *, start: Path, final: Path) -> None:
    """Write a Hugging Face folder under a temporary name, fsync it and rename it to `final`."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save_folder(model, weights, start=start, folder=temporary)
    for path in (*temporary.rglob("*"), temporary):
        fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    fsync(final.parent)


def save_folder(model: PreTrainedModel, weights: dict[str, torch.Tensor], *, start: Path, folder: Path) -> None:
    """Write a Hugging Face folder: the weights as safetensors, everything else as in the folder of the start."""
    from transformers import AutoConfig

    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    # The config as it was (dropout and cache were switched off for training), with the type of what is stored.
    config = AutoConfig.from_pretrained(start, local_files_only=True)
    config.dtype = next(iter(weights.values())).dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    for file in sorted(start.iterdir()):
        weights_file = file.suffix in (".safetensors", ".bin", ".pt", ".pth") or file.name.endswith(".index.json")
        if file.is_file() and not weights_file and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
