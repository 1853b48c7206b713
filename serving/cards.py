"""What `/v1/models` says of a model, read from its folder before anything is loaded."""

import json
import os
import time
from pathlib import Path
from typing import Any

from fusion.chat import Chat, ChatConfig
from fusion.config import fingerprint
from fusion.errors import ModelError
from fusion.models import check_folder, folder_digest
from fusion.rewards.armorm import ArmoSettings, objective_names
from fusion.rewards.family import settings_for
from serving.config import ChatModel, RewardModel
from serving.schemas import ModelCard

_CHAT_DETERMINISM = (
    "equal for equal seed, request and load; greedy answers may differ in ties when requests are batched"
)
_REWARD_DETERMINISM = "not tried yet: the model is loading"


def chat_card(name: str, model: ChatModel, *, on_gpu: bool) -> ModelCard:
    """Return the card of a chat model.

    Raises:
        ModelError: the folder cannot be served; the text names the file.
    """
    config = _config(model.folder)
    own = _max_length(config)
    asked = model.engine.max_model_len
    if own is None and asked is None:
        raise ModelError(f"{model.folder / 'config.json'} does not say how long the context is; set max_model_len")
    if own is not None and asked is not None and asked > own:
        raise ModelError(f"{name}: max_model_len is {asked}, but {model.folder / 'config.json'} says {own}")
    return _card(
        name,
        model.folder,
        model.chat,
        kind="chat",
        max_tokens=asked or own or 0,
        dtype=_dtype(config, on_gpu=on_gpu) if model.engine.dtype == "auto" else model.engine.dtype,
        determinism=_CHAT_DETERMINISM,
    )


def reward_card(name: str, model: RewardModel) -> ModelCard:
    """Return the card of a reward model.

    Raises:
        ModelError: the folder cannot be served; the text names the file.
    """
    config, file = _config(model.folder), model.folder / "config.json"
    settings = settings_for(model.folder, model.settings)
    armorm = isinstance(settings, ArmoSettings)
    outputs = list(objective_names(config, file)) if armorm else _outputs(config, file)
    settings.rule(outputs, name=str(file))  # raises, before any load
    limit = model.settings.max_length or _max_length(config)
    if limit is None:
        raise ModelError(f"{model.folder / 'config.json'} does not say how long the context is; set max_length")
    card = _card(
        name,
        model.folder,
        model.settings.chat,
        kind="reward",
        max_tokens=limit,
        dtype=model.settings.dtype,
        determinism=_REWARD_DETERMINISM,
    )
    canary = "none" if model.canary is None else "pair"
    return card.model_copy(
        update={
            "score_direction": "higher_is_better",
            "score_range": model.score_range,
            "objectives": outputs if len(outputs) > 1 else None,
            "canary": canary,
            "revision": _reward_revision(card.revision, model),
        }
    )


def _outputs(config: dict[str, Any], file: Path) -> list[str]:
    """Return the names of a model's outputs, as transformers reads them: a file that names none means two.

    Raises:
        ModelError: `id2label` does not name each output by its number; such a model would fail when it is loaded.
    """
    names = config.get("id2label")
    if names is None:
        return [f"LABEL_{i}" for i in range(config.get("num_labels") or 2)]
    if not isinstance(names, dict) or not names or set(names) != {str(i) for i in range(len(names))}:
        raise ModelError(
            f'{file}: id2label must name the outputs by number, from 0 on, e.g. {{"0": "helpful"}}; mend it'
        )
    return [str(names[str(i)]) for i in range(len(names))]


def _reward_revision(folder: str, model: RewardModel) -> str:
    """Return the revision of a reward model: another weighing of its outputs gives other scores."""
    weights = model.settings.objectives
    return folder if weights is None else fingerprint({"folder": folder, "objectives": weights})[:16]


def _card(
    name: str, folder: Path, chat: ChatConfig, *, kind: str, max_tokens: int, dtype: str, determinism: str
) -> ModelCard:
    return ModelCard.model_validate(
        {
            "id": name,
            "created": int(time.time()),
            "kind": kind,
            "revision": folder_digest(folder, _digests())[:16],
            "max_tokens": max_tokens,
            "dtype": dtype,
            "template_sha256": Chat.load(folder, chat).template_hash,
            "determinism": determinism,
        }
    )


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((check_folder(folder) / "config.json").read_text(encoding="utf-8"))


def _max_length(config: dict[str, Any]) -> int | None:
    value = (config.get("text_config") or config).get("max_position_embeddings")
    return value if isinstance(value, int) else None


def _dtype(config: dict[str, Any], *, on_gpu: bool) -> str:
    """Return the checkpoint's own precision on GPU, float32 on CPU, where half precision is slow and coarse."""
    own = config.get("dtype") or config.get("torch_dtype")
    return str(own) if on_gpu and own in ("float32", "bfloat16", "float16") else "bfloat16" if on_gpu else "float32"


def _digests() -> Path:
    """Return the file where digests of model folders are remembered between starts."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuseline"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / "digests.json"
