"""What prompt sets of every kind share: where their records are, and which of them are taken how.

A prompt set is two things: files with records (`RecordFiles`: local or from the hub), and what is made of them
(`PromptFields`: name, domain, field names, filters, limit). Answers of a data set are read from the same files,
see `existing.py`.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from fusion.config import Config
from fusion.errors import InputError
from fusion.promptsets.fields import FieldSource, Record, renamed
from fusion.promptsets.filters import Filter

DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
"""Names of data sets become table rows."""

DOMAIN = r"[^/\s\x00-\x1f]{1,64}"
"""Pattern of the names of domains that a recipe can say something of."""
DomainName = Annotated[str, Field(pattern=rf"^{DOMAIN}$")]

PromptField = Literal["id", "prompt", "messages", "domain", "reference", "tests", "entry_point"]


class RecordFiles(Config):
    """Files with records; each kind says where they are, what identifies them, and reads them."""

    @property
    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What identifies the records, wherever they are."""

    @property
    @abstractmethod
    def location(self) -> str:
        """Where they are, in a few words for messages."""

    @abstractmethod
    def read(self) -> Iterator[tuple[str, Iterator[Record]]]:
        """Yield each file's name and its records.

        Raises:
            InputError: a file cannot be had, or cannot be read.
        """


class PromptFields(RecordFiles):
    """What is made of the records of a prompt set."""

    name: DatasetName | None = None
    """Name of the data set: its prompts carry it, splits are made and rows are counted within it."""
    domain: str | None = None
    """Domain of all its prompts; None takes the record's own `domain` field."""
    fields: dict[PromptField, FieldSource] = {}
    """Our field -> its name in the records, where that is another, e.g. `{prompt: problem, reference: expected_answer}`."""
    filters: tuple[Filter, ...] = ()
    """What is left out; the first filter that refuses a prompt gives the reason."""
    limit: int | None = Field(default=None, ge=1)
    """Take at most so many of the different prompts that pass the filters, chosen by a hash of their id so that the
    choice does not follow file order."""

    @property
    def label(self) -> str:
        """What messages and counts call it."""
        return self.name or self.location

    @property
    def identity(self) -> dict[str, Any]:
        own = self.model_dump(mode="json", include={"name", "domain", "fields", "filters", "limit"})
        return {**self.content, **own}

    def records(self) -> Iterator[Record]:
        """Yield place and fields of every record, with our names.

        Raises:
            InputError: a file cannot be had or read, or has none of the fields that are needed or named.
        """
        for file, records in self.read():
            yield from _with_prompts(renamed(records, self.fields, file=file), file)


def _with_prompts(records: Iterator[Record], file: str) -> Iterator[Record]:
    """Pass the records on; a file whose records all lack a prompt is named, instead of each of its rows."""
    found, example = False, None
    for place, record in records:
        example = record if example is None else example
        found = found or "prompt" in record or "messages" in record
        yield place, record
    if example is not None and not found:
        raise InputError(
            f"{file} has neither a prompt nor a messages field; it has: {', '.join(map(str, example))}; "
            "say which one it is: fields: {prompt: NAME}"
        )
