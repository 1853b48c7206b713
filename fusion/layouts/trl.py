"""TRL's conversational data sets (docs of TRL, "Dataset formats and types"), and its unpaired preferences.

`prompt` is a list of messages, `chosen`, `rejected` and `completion` hold the response alone, `messages` is a whole
conversation. Read are also TRL's standard form, in which they are text, and the implicit prompt, in which `chosen` and
`rejected` are whole conversations and there is no `prompt`.
"""

import pyarrow as pa

from fusion.layouts.example import Answer, Example, Kind
from fusion.layouts.form import (
    MESSAGES,
    AnswerColumns,
    Form,
    Layout,
    Messages,
    Record,
    as_conversation,
    as_messages,
    as_text,
    assistant,
    messages_of,
    only,
)
from fusion.layouts.pairs import read_pair
from fusion.promptsets.records import Refused
from fusion.rows import Verdict

Read = tuple[Messages, tuple[list[Answer], ...]]


def _write_prompt(example: Example) -> Record:
    return {"prompt": messages_of(example.prompt.messages)}


def _read_prompt(record: Record) -> Read:
    return as_messages(record["prompt"], "prompt"), ()


def _write_messages(example: Example) -> Record:
    """Return a conversation that ends with the answer to imitate."""
    return {"messages": [*messages_of(example.prompt.messages), assistant(only(example, "response").text)]}


def _read_messages(record: Record) -> Read:
    messages, text = as_conversation(record["messages"], "messages")
    return messages, ([Answer("response", text)],)


def write_responses(example: Example) -> Record:
    """Return a pair as prompt and responses alone."""
    return {
        "prompt": messages_of(example.prompt.messages),
        "chosen": [assistant(only(example, "chosen").text)],
        "rejected": [assistant(only(example, "rejected").text)],
    }


def read_responses(record: Record) -> Read:
    messages, chosen, rejected = read_pair(record)
    return messages, ([Answer("chosen", chosen)], [Answer("rejected", rejected)])


def _write_completion(example: Example) -> Record:
    (answer,) = example.answers
    return {"prompt": messages_of(example.prompt.messages), "completion": [assistant(answer.text)]}


def _read_completion(record: Record) -> Read:
    answer = Answer("response", as_text(record["completion"], "completion"))
    return as_messages(record["prompt"], "prompt"), ([answer],)


def _write_label(example: Example) -> Record:
    verdict = only(example, "responses").verdict
    if verdict is None or verdict is Verdict.error:
        raise Refused("no_verdict", "a label says whether an answer is right, and no verifier has said so")
    return {**_write_completion(example), "label": verdict is Verdict.correct}


def _read_label(record: Record) -> Read:
    label = record["label"]
    if not isinstance(label, bool):
        raise Refused("bad_field", f"label is a {type(label).__name__}, not true or false")
    messages, ((answer,),) = _read_completion(record)
    return messages, ([Answer("responses", answer.text, verdict=Verdict.correct if label else Verdict.wrong)],)


SIDES = (AnswerColumns("chosen", ("chosen",)), AnswerColumns("rejected", ("rejected",)))
"""Facts about the two sides of a pair, where a publisher has no columns for them."""
IMITATED = (AnswerColumns("response", ("response",)),)
"""Facts about the answer to imitate."""

PAIR = Form(
    Kind.pair,
    {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES},
    needs=("chosen", "rejected"),
    write=write_responses,
    read=read_responses,
    answers=SIDES,
)
MESSAGES_SFT = Form(
    Kind.sft, {"messages": MESSAGES}, needs=("messages",), write=_write_messages, read=_read_messages, answers=IMITATED
)
COMPLETION_SFT = Form(
    Kind.sft,
    {"prompt": MESSAGES, "completion": MESSAGES},
    needs=("prompt", "completion"),
    write=_write_completion,
    read=_read_completion,
    answers=IMITATED,
)
PROMPT = Form(Kind.prompt, {"prompt": MESSAGES}, needs=("prompt",), write=_write_prompt, read=_read_prompt)

TRL = Layout(
    "trl",
    "TRL: prompt-only, SFT (messages, prompt-completion), preference",
    (PAIR, MESSAGES_SFT, COMPLETION_SFT, PROMPT),
)

UNPAIRED = Layout(
    "trl_unpaired",
    "TRL, unpaired preference: an answer and whether it is right",
    (
        Form(
            Kind.answers,
            {"prompt": MESSAGES, "completion": MESSAGES, "label": pa.bool_()},
            needs=("prompt", "completion", "label"),
            write=_write_label,
            read=_read_label,
            answers=(AnswerColumns("completion", ("responses",)),),
            one_answer=True,
        ),
    ),
)
