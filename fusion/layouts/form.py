"""What a layout is made of: forms, one per kind of example; a form is published columns and two functions.

A form's own functions deal with the columns that its publisher names. What the publisher has no column for (our
ids, domains, scores, verdicts, weights) is written and read here, under the same names for every layout, and left out
of plain files. To add a layout: a file with its forms and a `Layout`, and one line in `fusion/layouts/__init__.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from fusion.layouts.example import FACTS, ROLES, Answer, Example, Kind
from fusion.promptsets.records import MAX_CHARS, Refused, check_unicode, to_prompt
from fusion.rows import Finish, Message, Verdict

Record = dict[str, Any]
Messages = list[dict[str, str]]

TEXT, NUMBER, TEXTS, NUMBERS = pa.string(), pa.float64(), pa.list_(pa.string()), pa.list_(pa.float64())
MESSAGE = pa.struct([("role", TEXT), ("content", TEXT)])
MESSAGES = pa.list_(MESSAGE)

PROMPT_FACTS: Mapping[str, pa.DataType] = {
    "prompt_id": TEXT,
    "domain": TEXT,
    "dataset": TEXT,
    "reference": TEXT,
    "tests": TEXTS,
    "entry_point": TEXT,
}
"""Columns of what we know of a prompt beside its messages."""
_TYPES = dict.fromkeys(FACTS, TEXT) | {"score": NUMBER, "sample": pa.int64()}


@dataclasses.dataclass(frozen=True)
class AnswerColumns:
    """Columns of what is known of answers beside their text.

    Example: `AnswerColumns("chosen", ("chosen",))` has `chosen_score`, `chosen_model` and so on; with `many` they are
    `chosen_scores` and hold a list, one item per answer.
    """

    prefix: str
    roles: tuple[str, ...]
    """Roles of the answers that these columns hold."""
    many: bool = False
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fact -> column, for those that the publisher has a column for; they are written to plain files too."""

    def columns(self, *, plain: bool) -> dict[str, pa.DataType]:
        facts = [fact for fact in FACTS if fact in self.published or not plain]
        return {self.column(fact): pa.list_(_TYPES[fact]) if self.many else _TYPES[fact] for fact in facts}

    def column(self, fact: str) -> str:
        return self.published.get(fact) or f"{self.prefix}_{fact}{'s' if self.many else ''}"

    def write(self, example: Example) -> Record:
        answers = [answer for answer in example.answers if answer.role in self.roles]
        record = {}
        for fact in FACTS:
            values = [_plain(getattr(answer, fact)) for answer in answers]
            one = values[0] if len(values) == 1 else None
            record[self.column(fact)] = values if self.many else one
        return record

    def read(self, record: Record, answers: Sequence[Answer]) -> Iterator[Answer]:
        """Yield the answers with what the columns say of them; what a column does not say stays as it was."""
        found: list[dict[str, Any]] = [{} for _ in answers]
        for fact in FACTS:
            column = self.column(fact)
            values = record.get(column)
            if values is None:
                continue
            if self.many and not isinstance(values, list):
                raise Refused("bad_field", f"{column} is a {type(values).__name__}, not a list")
            listed = values if self.many else [values]
            if len(listed) != len(answers):
                raise Refused("bad_field", f"{column} has {len(listed)} items for {len(answers)} answers")
            for known, value in zip(found, listed, strict=True):
                if value is not None:
                    known[fact] = _checked(column, fact, value)
        for answer, known in zip(answers, found, strict=True):
            yield dataclasses.replace(answer, **known)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Finish | Verdict) else value


def _checked(column: str, fact: str, value: Any) -> Any:
    """Return what a column says of an answer in its type. Raises Refused."""
    if fact == "score":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused("bad_score", f"{column} is a {type(value).__name__}, not a number")
        if not math.isfinite(value):
            raise Refused("bad_score", f"{column} is {value}; scores must be finite")
        return float(value)
    if fact == "sample":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise Refused("bad_field", f"{column} is not a whole number of 0 or more")
        return value
    if not isinstance(value, str):
        raise Refused("bad_field", f"{column} is a {type(value).__name__}, not text")
    if fact == "model":
        return as_model(value, column)
    words = {"verdict": Verdict, "finish_reason": Finish}.get(fact)
    if words is None:
        return value
    try:
        return words(value)
    except ValueError:
        raise Refused("bad_field", f"{column} is {value[:64]!r}, not one of {', '.join(words)}") from None


def as_model(value: Any, column: str) -> str:
    """Return a column that names a model. Raises Refused."""
    if not isinstance(value, str):
        raise Refused("bad_field", f"{column} is a {type(value).__name__}, not text")
    if not value or len(value) > 256 or any(ord(c) < 32 for c in value):
        raise Refused("bad_field", f"{column} is empty, longer than 256 characters or holds control characters")
    check_unicode(value)
    return value


@dataclasses.dataclass(frozen=True)
class Form:
    """One kind of example in one layout."""

    kind: Kind
    columns: Mapping[str, pa.DataType]
    """The published columns, in order."""
    needs: tuple[str, ...]
    """Columns that a record of this form has."""
    write: Callable[[Example], Record]
    """Gives the published columns. Raises Refused for what they cannot hold."""
    read: Callable[[Record], tuple[Messages, Sequence[Sequence[Answer]]]]
    """Gives the prompt, and the answers of each of `answers`. Raises Refused."""
    answers: tuple[AnswerColumns, ...] = ()
    one_answer: bool = False
    """A record holds one answer only: an example with several becomes several records."""

    def schema(self, *, plain: bool) -> pa.Schema:
        """Return the columns of a file: the published ones, and unless it is plain those for the rest."""
        return pa.schema(list(self._columns(plain=plain).items()))

    def _columns(self, *, plain: bool) -> dict[str, pa.DataType]:
        columns = dict(self.columns)
        for held in self.answers:
            columns |= {name: type_ for name, type_ in held.columns(plain=plain).items() if name not in columns}
        if not plain:
            columns |= {name: type_ for name, type_ in PROMPT_FACTS.items() if name not in columns}
            columns["weight"] = NUMBER
        return columns

    def records(self, example: Example, *, plain: bool) -> Iterator[Record]:
        """Yield the records of an example. Raises Refused for what this layout cannot hold."""
        parts = [example]
        if self.one_answer:
            parts = [dataclasses.replace(example, answers=(answer,)) for answer in example.answers]
        names = self._columns(plain=plain)
        for part in parts:
            prompt = part.prompt
            record: Record = {name: getattr(prompt, name) for name in PROMPT_FACTS}
            record |= {"tests": list(prompt.tests) or None, "weight": part.weight}
            for held in self.answers:
                record |= held.write(part)
            record |= self.write(part)
            yield {name: record.get(name) for name in names}

    def example(self, record: Record, *, domain: str) -> Example:
        """Return what a record says.

        Args:
            domain: of prompts whose record names none.

        Raises:
            Refused: the record cannot be read; the reason is a short code.
        """
        messages, groups = self.read(record)
        answers = [a for held, said in zip(self.answers, groups, strict=True) for a in held.read(record, said)]
        named = record.get("domain")
        if named is not None and not isinstance(named, str):
            raise Refused("bad_field", f"domain is a {type(named).__name__}, not text")
        fields = {name: record.get(name) for name in ("reference", "tests", "entry_point")}
        prompt_id = record.get("prompt_id") if record.get("prompt_id") is not None else record.get("id")
        prompt = to_prompt({"id": prompt_id, "messages": messages, **fields}, domain=named or domain)
        dataset = record.get("dataset")
        if dataset is not None and not isinstance(dataset, str):
            raise Refused("bad_field", f"dataset is a {type(dataset).__name__}, not text")
        stripped = tuple(dataclasses.replace(answer, text=answer.text.strip()) for answer in answers)
        return Example(self.kind, dataclasses.replace(prompt, dataset=dataset), stripped, _weight(record))


def _weight(record: Record) -> float:
    weight = record.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise Refused("bad_field", "weight is not a finite number of 0 or more")
    return float(weight)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way in which rows are published."""

    name: str
    about: str
    """Who publishes rows like that, in a few words."""
    forms: tuple[Form, ...]
    """Those that need more columns come first."""

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(form.kind for form in self.forms)

    def form_for(self, kind: Kind) -> Form | None:
        """Return the form in which examples of a kind are written; None where the layout has none."""
        return next((form for form in self.forms if form.kind is kind), None)

    def form_of(self, columns: Collection[str]) -> Form | None:
        """Return the form of a record that has these columns; None where it is of another layout or half a pair."""
        if self.missing_side(columns) is not None:
            return None
        return next((form for form in self.forms if set(form.needs) <= set(columns)), None)

    def missing_side(self, columns: Collection[str]) -> str | None:
        """Return the side that a record lacks of a pair of which it has the other one; None where it has both or none.

        Such a record is no prompt alone and nothing to imitate, even if it has all columns of such a form: the side
        that is there would be lost without a word.
        """
        lacking = [side for side in ROLES[Kind.pair] if side not in columns]
        return lacking[0] if Kind.pair in self.kinds and len(lacking) == 1 else None

    def example(self, record: Record, *, domain: str) -> Example:
        """Return what a record says. Raises Refused."""
        columns = given(record)
        form = self.form_of(columns)
        if form is not None:
            return form.example(record, domain=domain)
        lacking = self.missing_side(columns)
        if lacking is not None:
            (other,) = set(ROLES[Kind.pair]) - {lacking}
            how = "null" if lacking in record else "missing"
            raise Refused(
                "missing_side", f"{other} is there and {lacking} is {how}; a pair needs both, other rows neither"
            )
        raise Refused("wrong_layout", f"{self.name} needs {self.needed()}; the row has: {shown(record)}")

    def needed(self) -> str:
        """Say which columns a record must have."""
        return " or ".join(" + ".join(form.needs) for form in self.forms)


# ---- parts that forms share -------------------------------------------------------------------


def given(record: Record) -> list[str]:
    """Return the names of the columns in which a record has something."""
    return [name for name, value in record.items() if value is not None]


def shown(record: Record) -> str:
    """Return the columns of a record for a message; those that are null are not what it has."""
    null = [name for name, value in record.items() if value is None]
    return listed(given(record)) + (f" (null: {listed(null)})" if null else "")


def listed(columns: Iterable[Any]) -> str:
    """Return names of columns for a message: on one line and not too long, whatever a stranger called them."""
    return ", ".join(repr(str(name))[1:-1] for name in columns)[:300] or "nothing"


def messages_of(prompt: Sequence[Message]) -> Messages:
    return [{"role": message.role, "content": message.content} for message in prompt]


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def only(example: Example, role: str) -> Answer:
    """Return the one answer that an example has in a role."""
    (answer,) = example.of(role)
    return answer


def as_messages(value: Any, column: str) -> Messages:
    """Return a prompt column as messages: text, one {role, content}, or a list of them. Raises Refused."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
        raise Refused("bad_messages", f"{column} must be text, a message, or a list of messages of role and content")
    return listed


def as_text(value: Any, column: str) -> str:
    """Return an answer column as text: text, or one assistant message, alone or in a list. Raises Refused."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        if value.get("role") != "assistant":
            raise Refused(
                "bad_messages", f"{column} is a message of role {str(value.get('role'))[:64]!r}, not assistant"
            )
        value = value.get("content")
    if not isinstance(value, str):
        raise Refused("bad_messages", f"{column} must be text or one assistant message")
    if len(value) > MAX_CHARS:
        raise Refused("too_long", f"{column} has {len(value)} characters, at most {MAX_CHARS}")
    return value


def as_texts(value: Any, column: str) -> list[str]:
    """Return a column that lists answers as texts. Raises Refused."""
    if not isinstance(value, list) or not value:
        raise Refused("bad_field", f"{column} must be a list of at least one answer")
    return [as_text(one, f"{column}[{number}]") for number, one in enumerate(value)]


def as_conversation(value: Any, column: str) -> tuple[Messages, str]:
    """Return a conversation that ends with an answer as prompt and answer. Raises Refused."""
    turns = as_messages(value, column)
    if len(turns) < 2:
        raise Refused("bad_messages", f"{column} must be a conversation that ends with an assistant turn")
    return turns[:-1], as_text(turns[-1], column)


def single_turn(example: Example, layout: str) -> str:
    """Return the prompt's text where it is one user turn; others have no place in this layout. Raises Refused."""
    messages = example.prompt.messages
    if len(messages) != 1:
        raise Refused("not_single_turn", f"{len(messages)} messages; {layout} holds prompts of one user turn")
    return messages[0].content
