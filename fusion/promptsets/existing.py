"""Answers that a data set already has: a source that is read instead of asked.

What a record answers is told by its id or by the text of its prompt, so a data set that prompts were taken from and a data
set with answers to them need not be the same file. Example: the answers of Llama-3.1-405B in OpenMathInstruct-2,
`{type: existing, data: {type: hub, repo: nvidia/OpenMathInstruct-2, revision: "<40 hex>"}, response: generated_solution,
fields: {prompt: problem}, max_per_prompt: 4}`.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from fusion.config import Config
from fusion.errors import InputError
from fusion.promptsets.fields import FieldPath, FieldSource, Record, renamed
from fusion.promptsets.records import MAX_CHARS, Refused, check_unicode, content_digest, messages_of
from fusion.promptsets.sets import Records
from fusion.rows import Finish, Message


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a record."""

    key: str
    """Id or content digest of the prompt that it answers."""
    text: str
    finish_reason: Finish


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What stands at one place of the data set: an answer, or why there is none."""

    place: str
    """File and record, and the number of the answer where a record has several."""
    answer: Answer | Refused


class ExistingAnswers(Config):
    """A source whose answers are read from a data set."""

    type: Literal["existing"] = "existing"
    data: Records
    """The files with the answers."""
    response: FieldPath = "response"
    """Field with the answer, text or a list of texts; a path such as `messages.-1.content` reaches into lists."""
    match: Literal["prompt", "id"] = "prompt"
    """How a record finds the prompt that it answers: by the prompt's text, or by an id that is the prompt's own."""
    fields: dict[Literal["id", "prompt", "messages", "finish_reason"], FieldSource] = {}
    """Our field -> its name in the records, as in prompt sets."""
    where: dict[str, str] = {}
    """Only records whose fields hold these texts, e.g. `{model: gemma-2-27b-it}` where a file has several models' answers."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """Take only so many answers to a prompt, the first ones; null takes all."""

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.data.content, **self.model_dump(mode="json", exclude={"data", "type"})}

    def answers(self) -> Iterator[Found]:
        """Yield every answer of every record.

        Raises:
            InputError: a file cannot be had or read, or has none of the fields that are named.
        """
        for file, records in self.data.read():
            ours = renamed(records, {**self.fields, "response": self.response}, file=file)
            for place, record in _with_fields(ours, self.where, file):
                if all(record.get(name) == text for name, text in self.where.items()):
                    yield from self._of(record, place)

    def key_of(self, prompt_id: str, messages: tuple[Message, ...]) -> str:
        """Return what `Answer.key` must be for an answer to this prompt."""
        return prompt_id if self.match == "id" else content_digest(messages)

    def _of(self, record: dict[str, Any], place: str) -> Iterator[Found]:
        try:
            key, finish = self._key(record), _finish(record)
            texts = _texts(record)
        except Refused as refused:
            yield Found(place, refused)
            return
        for number, text in enumerate(texts):
            where = place if len(texts) == 1 else f"{place}/{number}"
            try:
                yield Found(where, Answer(key, _checked(text), finish))
            except Refused as refused:
                yield Found(where, refused)

    def _key(self, record: dict[str, Any]) -> str:
        if self.match == "prompt":
            return content_digest(messages_of(_without_answer(record)))
        found = record.get("prompt_id") if record.get("prompt_id") is not None else record.get("id")
        if found is None:
            raise Refused("missing_id", "no id in the record, and answers are matched by id")
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise Refused("bad_field", f"id is a {type(found).__name__}, not text or a whole number")
        return str(found)


def _with_fields(records: Iterator[Record], names: Iterable[str], file: str) -> Iterator[Record]:
    """Pass the records on; a file whose records all lack one of the fields is named: else none of them would be taken."""
    unseen, example = list(names), None
    for place, record in records:
        example = record if example is None else example
        unseen = [name for name in unseen if name not in record]
        yield place, record
    if unseen and example is not None:
        raise InputError(
            f"{file}: no record has a field {unseen[0]!r}, named in where; the first one has: {', '.join(map(str, example))}"
        )


def _without_answer(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record without the assistant's turn that ends its conversation: that is the answer."""
    for name in ("messages", "prompt"):
        turns = record.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
            return {**record, name: turns[:-1]}
    return record


def _texts(record: dict[str, Any]) -> list[Any]:
    found = record.get("response")
    if found is None:
        raise Refused("missing_response", "no response in the record")
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list):
        raise Refused("bad_field", f"response is a {type(found).__name__}, not text or a list of texts")
    if not found:
        raise Refused("missing_response", "response is an empty list")
    return found


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise Refused("bad_field", f"response is a {type(text).__name__}, not text")
    check_unicode(text)
    text = text.strip()
    if not text:
        raise Refused("empty_response", "the answer is empty")
    if len(text) > MAX_CHARS:
        raise Refused("too_long", f"{len(text)} characters, at most {MAX_CHARS}")
    return text


def _finish(record: dict[str, Any]) -> Finish:
    found = record.get("finish_reason")
    if found is None:
        return Finish.stop
    if found not in list(Finish):
        raise Refused("bad_field", f"finish_reason is {found!r}, not {' or '.join(Finish)}")
    return Finish(found)
