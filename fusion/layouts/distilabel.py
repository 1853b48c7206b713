"""The names that distilabel gives its columns (its text generation and UltraFeedback tasks and `FormatTextGenerationDPO`).

`instruction` with an optional `system_prompt`, or `messages` for several turns; `generations`, `generation_models` and
`ratings` for many answers, `generation` and `model_name` for one; and for pairs `prompt`, `prompt_id`, `chosen`,
`chosen_model`, `chosen_rating` and their `rejected` siblings, whose conversations hold the prompt.
"""

from typing import Any

from fusion.layouts.example import OTHER, Answer, Example, Kind
from fusion.layouts.form import (
    MESSAGES,
    NUMBERS,
    TEXT,
    TEXTS,
    AnswerColumns,
    Form,
    Layout,
    Messages,
    Record,
    as_messages,
    as_text,
    as_texts,
    messages_of,
    only,
)
from fusion.layouts.pairs import read_pair, sides, write_conversations
from fusion.layouts.trl import read_responses
from fusion.promptsets.records import Refused

_PROMPT = {"instruction": TEXT, "system_prompt": TEXT, "messages": MESSAGES}
_MANY = {"generations": TEXTS, "generation_models": TEXTS, "ratings": NUMBERS}
_DPO = {"prompt": TEXT, "prompt_id": TEXT, "chosen": MESSAGES, "rejected": MESSAGES}
_NAMES = {"model": "generation_models", "score": "ratings"}


def _write_prompt(example: Example) -> Record:
    messages = messages_of(example.prompt.messages)
    if [turn["role"] for turn in messages] not in (["user"], ["system", "user"]):
        return {"messages": messages}
    system = messages[0]["content"] if len(messages) == 2 else None
    return {"instruction": messages[-1]["content"], "system_prompt": system}


def _read_prompt(record: Record) -> Messages:
    if record.get("messages") is not None:
        return as_messages(record["messages"], "messages")
    named = [name for name in ("instruction", "prompt") if record.get(name) is not None]
    if not named:
        raise Refused("missing_prompt", "no instruction and no messages column")
    return [*_system(record), *as_messages(record[named[0]], named[0])]


def _system(record: Record) -> Messages:
    system: Any = record.get("system_prompt")
    if system is None or system == "":
        return []
    if not isinstance(system, str):
        raise Refused("bad_field", f"system_prompt is a {type(system).__name__}, not text")
    return [{"role": "system", "content": system}]


def _write_answers(example: Example) -> Record:
    return {**_write_prompt(example), "generations": [answer.text for answer in example.answers]}


def _read_answers(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    texts = as_texts(record["generations"], "generations")
    return _read_prompt(record), ([Answer("responses", text) for text in texts],)


def _write_one(example: Example) -> Record:
    return {**_write_prompt(example), "generation": only(example, "response").text}


def _read_one(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    return _read_prompt(record), ([Answer("response", as_text(record["generation"], "generation"))],)


def _write_pair(example: Example) -> Record:
    sides_of = {role: only(example, role) for role in ("chosen", "rejected")}
    named = {f"{role}_model": answer.model for role, answer in sides_of.items()}
    rated = {f"{role}_rating": answer.score for role, answer in sides_of.items()}
    both = {**write_conversations(example), "prompt_id": example.prompt.prompt_id}
    return {**_write_answers(example), **both, **named, **rated}


def _read_pair(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    messages, chosen, rejected = read_pair(record)
    texts = as_texts(record["generations"], "generations")
    return messages, (sides(texts, chosen, rejected),)


def _side(role: str) -> AnswerColumns:
    return AnswerColumns(role, (role,), published={"model": f"{role}_model", "score": f"{role}_rating"})


_SIDE_COLUMNS = {
    name: type_ for role in ("chosen", "rejected") for name, type_ in _side(role).columns(plain=True).items()
}

DISTILABEL = Layout(
    "distilabel",
    "distilabel: generations of named models with their ratings",
    (
        Form(
            Kind.pair,
            {**_PROMPT, **_MANY, **_DPO, **_SIDE_COLUMNS},
            needs=("generations", "chosen", "rejected"),
            write=_write_pair,
            read=_read_pair,
            answers=(AnswerColumns("generation", ("chosen", "rejected", OTHER), many=True, published=_NAMES),),
        ),
        Form(
            Kind.pair,
            {**_DPO, **_SIDE_COLUMNS},
            needs=("chosen", "rejected"),
            write=_write_pair,
            read=read_responses,
            answers=(_side("chosen"), _side("rejected")),
        ),
        Form(
            Kind.answers,
            {**_PROMPT, **_MANY},
            needs=("generations",),
            write=_write_answers,
            read=_read_answers,
            answers=(AnswerColumns("generation", ("responses",), many=True, published=_NAMES),),
        ),
        Form(
            Kind.sft,
            {**_PROMPT, "generation": TEXT, "model_name": TEXT},
            needs=("generation",),
            write=_write_one,
            read=_read_one,
            answers=(AnswerColumns("generation", ("response",), published={"model": "model_name"}),),
        ),
    ),
)
