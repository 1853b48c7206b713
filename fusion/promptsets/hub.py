"""Records in Hugging Face data set repositories, pinned to a commit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fusion.errors import InputError
from fusion.models import PLACEHOLDER, REVISION
from fusion.promptsets.common import PromptFields, RecordFiles
from fusion.promptsets.fields import Record
from fusion.promptsets.files import read_records


class HubFiles(RecordFiles):
    """Files of a data set repository."""

    type: Literal["hub"] = "hub"
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Data set repository, `owner/name`."""
    revision: str
    """Full 40-hex commit; quote it. `"<40 hex>"` plans but refuses to run until pinned."""
    files: str = "**/train-*.parquet"
    """Pattern of the Parquet, JSON-lines or JSON files of the split inside the repository."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if not (REVISION.fullmatch(self.revision) or PLACEHOLDER.fullmatch(self.revision)):
            raise ValueError(
                f"revision {self.revision!r} is not a 40-hex commit; branches and tags move, pin the commit"
            )
        return self

    @property
    def pinned(self) -> bool:
        return REVISION.fullmatch(self.revision) is not None

    @property
    def content(self) -> dict[str, Any]:
        return {"repo": self.repo, "revision": self.revision, "files": self.files}

    @property
    def location(self) -> str:
        return self.repo

    def read(self) -> Iterator[tuple[str, Iterator[Record]]]:
        """Download the files once and yield their names and records.

        Raises:
            InputError: unpinned revision, repository not reachable, or no file matches.
        """
        if not self.pinned:
            raise InputError(
                f"prompts {self.repo}: revision is the placeholder {self.revision!r}; set it to the 40-hex commit "
                "shown under 'History' on the data set's page"
            )
        from huggingface_hub import snapshot_download  # planning must not need it
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

        try:
            folder = Path(
                snapshot_download(self.repo, repo_type="dataset", revision=self.revision, allow_patterns=[self.files])
            )
        except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"prompts {self.repo}@{self.revision} could not be downloaded: {reason}") from None
        found = sorted(folder.glob(self.files))
        if not found:
            raise InputError(f"prompts {self.repo}@{self.revision} has no file matching {self.files!r}")
        for file in found:
            yield str(file), read_records(file)


class HubPrompts(HubFiles, PromptFields):
    """Prompts of a data set repository."""
