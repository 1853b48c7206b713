"""LLaMA-Factory's two formats (data/README.md of hiyouga/LLaMA-Factory): sharegpt and alpaca, for SFT and for preferences.

sharegpt: `conversations` of {from: human or gpt, value}, for preferences without the last answer, which is then in
`chosen` and `rejected`; `system` is a column. alpaca: `instruction` and `input` are joined by a line break, `history`
holds earlier turns as pairs, `output` or `chosen` and `rejected` are text.
"""

from typing import Any

import pyarrow as pa

from fusion.layouts.example import Answer, Example, Kind
from fusion.layouts.form import TEXT, TEXTS, Form, Layout, Messages, Record, as_text, only
from fusion.layouts.trl import IMITATED, SIDES
from fusion.promptsets.records import Refused

TURN = pa.struct([("from", TEXT), ("value", TEXT)])
TURNS = pa.list_(TURN)
TAGS = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
"""What `from` says -> role; the last two are what OpenAI-style files write there."""
_SAID_BY = {"user": "human", "assistant": "gpt", "system": "system"}

Read = tuple[Messages, tuple[list[Answer], ...]]


# ---- sharegpt ---------------------------------------------------------------------------------


def turn(role: str, text: str) -> dict[str, str]:
    return {"from": _SAID_BY[role], "value": text}


def turns_of(example: Example) -> list[dict[str, str]]:
    return [turn(message.role, message.content) for message in example.prompt.messages if message.role != "system"]


def read_turns(value: Any, column: str) -> Messages:
    """Return turns of {from, value} as messages. Raises Refused."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Refused("bad_messages", f"{column} must be a list of turns of from and value")
    return [_message(one, column) for one in value]


def _message(one: Any, column: str) -> dict[str, Any]:
    said_by = one.get("from") if isinstance(one, dict) else None
    if not isinstance(said_by, str) or said_by not in TAGS:
        raise Refused("bad_messages", f"{column} has a turn from {str(said_by)[:64]!r}, not {', '.join(TAGS)}")
    return {"role": TAGS[said_by], "content": one.get("value")}


def read_side(value: Any, column: str) -> str:
    """Return one side of a pair, a turn of {from, value} or text. Raises Refused."""
    return as_text(value if isinstance(value, str) else _message(value, column), column)


def _system_of(example: Example) -> str | None:
    first = example.prompt.messages[0]
    return first.content if first.role == "system" else None


def with_system(record: Record, messages: Messages) -> Messages:
    """Return messages under the record's `system` column, where it has one. Raises Refused."""
    system = record.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise Refused("bad_field", f"system is a {type(system).__name__}, not text")
    return [{"role": "system", "content": system}, *messages]


def write_conversations(example: Example) -> Record:
    """Return a conversation that ends with the answer to imitate, and the system prompt."""
    answer = turn("assistant", only(example, "response").text)
    return {"conversations": [*turns_of(example), answer], "system": _system_of(example)}


def read_conversations(record: Record) -> Read:
    *messages, last = with_system(record, read_turns(record["conversations"], "conversations")) or [{}]
    return messages, ([Answer("response", as_text(last, "the last turn of conversations"))],)


def _write_sharegpt_pair(example: Example) -> Record:
    answers = {role: turn("assistant", only(example, role).text) for role in ("chosen", "rejected")}
    return {"conversations": turns_of(example), "system": _system_of(example), **answers}


def _read_sharegpt_pair(record: Record) -> Read:
    messages = with_system(record, read_turns(record["conversations"], "conversations"))
    return messages, tuple([Answer(role, read_side(record[role], role))] for role in ("chosen", "rejected"))


SHAREGPT = Layout(
    "sharegpt",
    "LLaMA-Factory, sharegpt: conversations of human and gpt",
    (
        Form(
            Kind.pair,
            {"conversations": TURNS, "chosen": TURN, "rejected": TURN, "system": TEXT},
            needs=("conversations", "chosen", "rejected"),
            write=_write_sharegpt_pair,
            read=_read_sharegpt_pair,
            answers=SIDES,
        ),
        Form(
            Kind.sft,
            {"conversations": TURNS, "system": TEXT},
            needs=("conversations",),
            write=write_conversations,
            read=read_conversations,
            answers=IMITATED,
        ),
    ),
)


# ---- alpaca -----------------------------------------------------------------------------------


def _write_alpaca_prompt(example: Example) -> Record:
    turns = [message.content for message in example.prompt.messages if message.role != "system"]
    history = [list(pair) for pair in zip(turns[:-1:2], turns[1::2], strict=True)]
    return {"instruction": turns[-1], "input": "", "system": _system_of(example), "history": history}


def _read_alpaca_prompt(record: Record) -> Messages:
    instruction, more = as_text(record["instruction"], "instruction"), record.get("input")
    if more is not None and more != "":
        instruction = f"{instruction}\n{as_text(more, 'input')}"
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Refused("bad_field", "history must be a list of pairs of a question and its answer")
    asked = [{"role": role, "content": said} for pair in history for role, said in zip(_TURNS, pair, strict=True)]
    return with_system(record, [*asked, {"role": "user", "content": instruction}])


_TURNS = ("user", "assistant")


def _write_alpaca(example: Example) -> Record:
    return {**_write_alpaca_prompt(example), "output": only(example, "response").text}


def _read_alpaca(record: Record) -> Read:
    return _read_alpaca_prompt(record), ([Answer("response", as_text(record["output"], "output"))],)


def _write_alpaca_pair(example: Example) -> Record:
    return {**_write_alpaca_prompt(example), **{role: only(example, role).text for role in ("chosen", "rejected")}}


def _read_alpaca_pair(record: Record) -> Read:
    messages = _read_alpaca_prompt(record)
    return messages, tuple([Answer(role, as_text(record[role], role))] for role in ("chosen", "rejected"))


_ALPACA = {"instruction": TEXT, "input": TEXT, "system": TEXT, "history": pa.list_(TEXTS)}

ALPACA = Layout(
    "alpaca",
    "LLaMA-Factory, alpaca: instruction, input and output",
    (
        Form(
            Kind.pair,
            {**_ALPACA, "chosen": TEXT, "rejected": TEXT},
            needs=("instruction", "chosen", "rejected"),
            write=_write_alpaca_pair,
            read=_read_alpaca_pair,
            answers=SIDES,
        ),
        Form(
            Kind.sft,
            {**_ALPACA, "output": TEXT},
            needs=("instruction", "output"),
            write=_write_alpaca,
            read=_read_alpaca,
            answers=IMITATED,
        ),
    ),
)
