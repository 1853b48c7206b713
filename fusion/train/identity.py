"""What a checkpoint must share with the run that resumes it, kept in parts so that a refusal can name what differs."""

from pathlib import Path
from typing import Any

import numpy as np

from fusion.artifact import file_sha256
from fusion.config import Config, fingerprint
from fusion.models import folder_digest
from fusion.training import TrainConfig

MODEL_DIGESTS = "model_digests.json"


class RunIdentity(Config):
    """Everything that the weights after k steps depend on, apart from the number of workers and the ZeRO stage."""

    config: dict[str, Any]
    """The TrainConfig."""
    files: dict[str, str]
    """Data file of the training directory -> digest of its content."""
    model: str
    """Digest over the names and contents of the start model's files."""

    @classmethod
    def of(cls, directory: Path, model_folder: Path, config: TrainConfig, *, tables: str, arrays: str) -> "RunIdentity":
        """Read the identity of a run whose data files are written; `arrays` (the reference) may be missing.

        A large model takes minutes to digest, so the digests are remembered in the directory by size and time.
        """
        files = {tables: file_sha256(directory / tables)}
        if (directory / arrays).exists():
            with np.load(directory / arrays) as stored:
                files[arrays] = fingerprint({name: stored[name].tolist() for name in sorted(stored)})
        model = folder_digest(model_folder, directory / MODEL_DIGESTS)
        return cls(config=config.model_dump(mode="json"), files=files, model=model)

    def differences(self, now: "RunIdentity") -> list[str]:
        """Say in words what differs between a checkpoint's identity (self) and that of the run of now."""
        found = []
        if self.model != now.model:
            found.append("it was written for another model: the files of the start model differ")
        for name in sorted({*self.files, *now.files}):
            if self.files.get(name) != now.files.get(name):
                found.append(f"the data file {name} has changed")
        then, here = _flatten(self.config), _flatten(now.config)
        for name in sorted({*then, *here}):
            if then.get(name) != here.get(name):
                was, is_ = (known.get(name, "absent") for known in (then, here))
                found.append(f"{name} was {was} and is {is_}")
        return found


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Example: `{"loss": {"type": "dpo"}}` gives `{"loss.type": "dpo"}`."""
    if isinstance(value, dict):
        return {n: v for key, inner in value.items() for n, v in _flatten(inner, f"{name}.{key}".strip(".")).items()}
    return {name: value}
