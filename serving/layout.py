"""How deployments are named, scaled and kept alive: what engines, reward models and the front have in common.

The one idea: a deployment is named after what it holds. Another model, or the same one with other settings, is
another deployment beside it, so a front always speaks to the very models whose cards it shows, also while they
are being swapped; the same model with another number of replicas is the same deployment.
"""

from functools import cache
from pathlib import Path
from typing import Any

from fusion.artifact import file_sha256
from fusion.config import fingerprint
from serving.config import ChatModel, Replicas, RewardModel
from serving.schemas import ModelCard

FRONT = "front"
"""Name of the HTTP front's deployment."""

STEADY: dict[str, Any] = {
    # The new replica is there before the old one goes; with Ray's default, 0, all traffic waits for the start.
    "max_surge_percent": 100,
    # Three failures in a row replace a replica; a dead engine costs about six seconds and the new one's start.
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 10.0,
}
"""Options of every deployment."""

ROOM = 2
"""Times the requests that a front gives one replica, which is what a replica takes: Ray must never have to keep one
waiting (`line`), also while two fronts are in service, or one of two replicas has died and the front does not know."""

_SCALE = {"replicas", "autoscaling", "max_queued_requests", "max_queued_while_starting"}
"""Fields that Ray changes on a running deployment."""


def scaling(placement: Replicas) -> dict[str, Any]:
    """Return the options that say how many replicas there are."""
    scale = placement.autoscaling
    if scale is None:
        return {"num_replicas": placement.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing_requests,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
    }


def engine_name(card: ModelCard, model: ChatModel, *, on_gpu: bool) -> str:
    """Return the name of a chat model's deployment."""
    engine = model.engine.model_dump(mode="json", exclude=_SCALE)
    return _name("chat", card, {"engine": engine, "dtype": card.dtype, "max_tokens": card.max_tokens, "gpu": on_gpu})


def reward_name(card: ModelCard, model: RewardModel, *, on_gpu: bool) -> str:
    """Return the name of a reward model's deployment."""
    placement = model.placement.model_dump(mode="json", exclude=_SCALE)
    settings = model.settings.model_dump(mode="json")
    return _name("reward", card, {"settings": settings, "placement": placement, "gpu": on_gpu})


def _name(kind: str, card: ModelCard, settings: dict[str, Any]) -> str:
    held = {"revision": card.revision, "template": card.template_sha256, "code": code_digest(), **settings}
    return f"{kind}:{card.id}:{fingerprint(held)[:8]}"


@cache
def code_digest() -> str:
    """Return a digest of this service's own code: a model that other code loaded is not the same deployment."""
    packages = [Path(__file__).parents[1] / package for package in ("fusion", "serving")]
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    return fingerprint([[file.name, file_sha256(file)] for file in files])
