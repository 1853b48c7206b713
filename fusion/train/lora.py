"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft: put in at the start, merged at the end.

    y = W x + (alpha / rank) * B A x,    W frozen, B = 0 at the start

The one idea: the trained model leaves as an ordinary folder, so nothing after training knows of adapters; and because
B starts at 0, the start model is exactly the policy with its adapters off. That is what the reference stage computes,
once, instead of a second pass in every step.

The head and the embeddings stay as they are: the fused head reads its weight as a whole.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from fusion.errors import ModelError
from fusion.training import Lora

ADAPTER = "default"
"""peft's name for the only adapter."""


def add_adapters(model: PreTrainedModel, lora: Lora, *, seed: int) -> int:
    """Freeze the model and put adapters into it, in place; the same on every worker and at every start.

    Returns:
        the number of trained weights.

    Raises:
        ModelError: a target does not exist, or is the head.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second to import, and most trainings have no adapters

    head = model.get_output_embeddings()
    heads = {name for name, module in model.named_modules() if module is head}
    targets = list(lora.targets) or "all-linear"  # which leaves the head out
    if refused := sorted(name for name in heads if any(_names(name, target) for target in lora.targets)):
        raise ModelError(f"lora.targets names the head ({refused[0]}), which cannot have an adapter; leave it out")
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets), model
        )
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"lora.targets {', '.join(lora.targets)} are not in {type(model).__name__}; its linear layers are "
            f"{', '.join(linear)} ({(str(error).splitlines() or ['no text'])[0]})"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _names(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def merged(weights: dict[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """Return the weights under the names of the model without adapters, with W + (alpha / rank) * B A in place of W.

    Args:
        weights: all weights of a model with adapters, as `full_state_dict` gathers them.
    """
    found = {}
    for name, weight in weights.items():
        if _is_adapter(name):
            continue
        place, is_base, leaf = name.rpartition(".base_layer.")
        if is_base and leaf == "weight":
            a, b = (weights[f"{place}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
            # In fp32 whatever the weights are: the product is rounded once, when it is stored.
            whole = weight.float() + lora.alpha / lora.rank * (b.float() @ a.float())
            found[f"{place}.weight"] = whole.to(weight.dtype)
        else:
            found[f"{place}.{leaf}" if is_base else name] = weight
    return found
