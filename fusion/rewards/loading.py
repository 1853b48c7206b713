"""Loading a reward model without surprises: whatever would give made-up scores is an error that names it."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

from fusion.errors import ModelError
from fusion.packed.attention import own_attention
from fusion.rewards.armorm import is_armorm
from fusion.sampling import Precision


def load_model(folder: Path, *, dtype: Precision) -> Any:
    """Return the sequence classifier of a folder.

    Raises:
        ModelError: weights missing, left over or of other shapes, or another architecture.
    """
    config = load_config(folder)
    if is_armorm(config.to_dict()):
        raise ModelError(f"{folder / 'config.json'}: this is an ArmoRM, another family; write type: armorm")
    model = load_weights(AutoModelForSequenceClassification, folder, config, dtype=dtype)
    # Others pool elsewhere or have no layer named `score`; our own pooling would give made-up numbers.
    if not isinstance(model, GenericForSequenceClassification):
        raise ModelError(
            f"{folder / 'config.json'}: {type(model).__name__} is not a decoder with a linear output 'score', the "
            "only kind of sequence classifier supported; take another reward model or a python scorer"
        )
    return model


def load_config(folder: Path) -> Any:
    """Return the transformers config of a folder. Raises ModelError where it cannot be used."""
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be used: {_one_line(error)}") from error


def load_weights(model_class: Any, folder: Path, config: Any, *, dtype: Precision) -> Any:
    """Return a model of this class, or of what an Auto class makes of the config, with the weights of a folder.

    Raises:
        ModelError: weights missing, left over or of other shapes, or pickled.
    """
    try:
        model, info = model_class.from_pretrained(
            str(folder),
            config=config,
            attn_implementation=own_attention(config.get_text_config().to_dict()),
            dtype={"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by us, with the names
        )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded as a reward model: {_one_line(error)}") from error
    _check_weights(folder, info)
    return model


def _check_weights(folder: Path, info: dict[str, Any]) -> None:
    """Refuse a model whose file and code do not name the same weights: transformers would draw the missing ones."""
    kinds = {
        "missing_keys": "are missing and would be drawn at random",
        "unexpected_keys": "belong to no part of the model",
        "mismatched_keys": "have another shape than the model",
    }
    for kind, what in kinds.items():
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in info[kind])
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{folder}: weights {', '.join(names[:3])}{more} {what}; this is not a finished reward model of the "
                "architecture in its config.json"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
