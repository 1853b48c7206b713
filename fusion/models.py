"""Which model, exactly: a hub repository at a revision, or a local folder keyed by its content.

A `ModelRef` is what a recipe says; a `PinnedModel` is what stages take as input: it has a key and can
produce a folder. Models that the pipeline trains are stages themselves and need no reference here.
Only safetensors weights are used, and no remote code is run.
"""

import dataclasses
import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from fusion.artifact import file_sha256, write_json
from fusion.config import KEY_HEX, Config, fingerprint
from fusion.errors import ModelError

REVISION = re.compile(r"[0-9a-f]{40}")
PLACEHOLDER = re.compile(r"<.*>")


class ModelRef(Config):
    """A model by repository and revision, or by local folder."""

    repo: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """Hub repository, `owner/name`."""
    revision: str | None = None
    """Full 40-hex commit of `repo`; quote it. `"<40 hex>"` plans but refuses to run until pinned."""
    path: Path | None = None
    """Local Hugging Face folder; identified by the content of its files, not by its name."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.repo is None) == (self.path is None):
            raise ValueError("give either repo and revision, or path")
        if self.repo is not None and self.revision is None:
            raise ValueError(f"{self.repo}: revision is missing; pin it to the 40-hex commit of the repository")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision belongs to repo, not to path")
        if self.revision is not None and not (
            REVISION.fullmatch(self.revision) or PLACEHOLDER.fullmatch(self.revision)
        ):
            raise ValueError(
                f"revision {self.revision!r} is not a 40-hex commit; branches and tags move, pin the commit"
            )
        return self

    @property
    def pinned(self) -> bool:
        return self.revision is None or REVISION.fullmatch(self.revision) is not None


@dataclasses.dataclass(frozen=True)
class PinnedModel:
    """A model as the input of a stage.

    `digests` is the file where content digests of large folders are remembered by size and time.
    """

    name: str
    ref: ModelRef
    digests: Path

    @cached_property
    def identity(self) -> dict[str, str | None]:
        if self.ref.path is not None:
            return {"content": folder_digest(self.ref.path, self.digests)}
        return {"repo": self.ref.repo, "revision": self.ref.revision}

    @cached_property
    def key(self) -> str:
        return fingerprint({"model": self.identity})[:KEY_HEX]

    @property
    def digest(self) -> str:
        return fingerprint(self.identity)

    @property
    def label(self) -> str:
        return str(self.ref.path) if self.ref.path is not None else f"{self.ref.repo}@{self.ref.revision}"

    def folder(self) -> Path:
        """Return a local folder with the model; hub models are downloaded once at their revision.

        Raises:
            ModelError: unpinned revision, or the repository cannot be had.
        """
        if self.ref.path is not None:
            return check_folder(self.ref.path).resolve()
        if not self.ref.pinned:
            raise ModelError(
                f"{self.name}: revision of {self.ref.repo} is the placeholder {self.ref.revision!r}; set it to the "
                "40-hex commit shown under 'History' on the repository's page"
            )
        from huggingface_hub import snapshot_download  # heavy, and planning must not need it
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

        patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
        try:
            folder = snapshot_download(self.ref.repo or "", revision=self.ref.revision, allow_patterns=patterns)
        except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{self.name}: {self.ref.repo}@{self.ref.revision} could not be downloaded: {reason}; check the name, "
                "the licence gate (HF_TOKEN) and the network, or give a local folder as path"
            ) from None
        return check_folder(Path(folder))


def check_folder(path: Path) -> Path:
    """Return `path` if it looks like a Hugging Face model folder, else raise ModelError naming the file."""
    if not path.is_dir():
        raise ModelError(f"model folder {path} does not exist or is not a directory")
    if not (path / "config.json").exists():
        raise ModelError(f"{path / 'config.json'} is missing; {path} is not a Hugging Face model folder")
    _read_object(path / "config.json")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"{path} has no *.safetensors file; convert the weights, pickled ones are not loaded")
    index = path / "model.safetensors.index.json"
    if index.exists():
        files = _read_object(index).get("weight_map")
        if not isinstance(files, dict):
            raise ModelError(
                f"{index} has no weight_map, which says in which file each weight is; copy the folder again"
            )
        missing = sorted({str(file) for file in files.values() if not (path / str(file)).exists()})
        if missing:
            raise ModelError(f"{index} lists {missing[0]}, which is missing ({len(missing)} in all)")
    return path


def _read_object(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(facts, dict):
        raise ModelError(f"{file} is not a JSON object; {file.parent} is not a Hugging Face model folder")
    return facts


def folder_digest(path: Path, remembered: Path) -> str:
    """Return a sha256 over the relative names and contents of all files of a model folder.

    Hashing a large folder takes minutes, so digests are remembered in `remembered` together with each
    file's size and modification time; a file that changed either is hashed again.
    """
    check_folder(path)
    known: dict[str, list] = json.loads(remembered.read_text()) if remembered.exists() else {}
    seen: dict[str, list] = {}
    lines = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        stat, name = file.stat(), str(file.resolve())
        entry = known.get(name)
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, file_sha256(file)]
        seen[name] = entry
        lines.append(f"{file.relative_to(path)}\0{entry[2]}\n")
    if any(known.get(name) != entry for name, entry in seen.items()):
        write_json(remembered, {**known, **seen})
    return hashlib.sha256("".join(lines).encode()).hexdigest()
