"""Which family of reward models a folder is of, read from its config.json: for those who are given a folder and no type."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.errors import ModelError
from fusion.models import check_folder
from fusion.rewards.armorm import ArmoSettings, is_armorm
from fusion.rewards.sequence_classifier import ClassifierSettings, RewardModelSettings


def settings_for(folder: Path, given: RewardModelSettings) -> ArmoSettings | ClassifierSettings:
    """Return what was set, as settings of the family that the folder is of.

    Raises:
        ModelError: the folder is none, or not that of a reward model.
    """
    file = check_folder(folder) / "config.json"
    config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    fields = {name: getattr(given, name) for name in RewardModelSettings.model_fields}
    if is_armorm(config):
        return ArmoSettings(**fields)
    architectures = config.get("architectures") or ["unknown"]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        raise ModelError(
            f"{file}: {architectures[0]} is not a reward model; one whose architecture ends with "
            "ForSequenceClassification is needed, or an ArmoRM"
        )
    return ClassifierSettings(**fields)
