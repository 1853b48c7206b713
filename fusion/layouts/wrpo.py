"""The rows that WRPO is published with (README of SLIT-AI/WRPO; read by its run_wrpo.py with `load_from_disk`).

`prompt` is one user message, `chosen` is [y_ws, y_wt] and `rejected` is [y_l], each an assistant message. The layout
knows its answers by place: of `chosen` the last is the target's own and those before it are sources' answers. With one
source answer that is the published form; with more, and with sources' answers before y_l in `rejected`, it is the same
rule carried on (INFERRED: the release has none).
"""

from fusion.layouts.example import Answer, Example, Kind
from fusion.layouts.form import (
    MESSAGE,
    MESSAGES,
    TEXT,
    AnswerColumns,
    Form,
    Layout,
    Messages,
    Record,
    as_messages,
    as_texts,
    assistant,
    single_turn,
)
from fusion.promptsets.records import Refused


def _write(example: Example) -> Record:
    chosen = (*example.of("source_chosen"), *example.of("target_chosen"))
    rejected = (*example.of("source_rejected"), *example.of("rejected"))
    return {
        "prompt_id": example.prompt.prompt_id,
        "prompt": {"role": "user", "content": single_turn(example, "wrpo")},
        "chosen": [assistant(answer.text) for answer in chosen],
        "rejected": [assistant(answer.text) for answer in rejected],
    }


def _read(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    chosen, rejected = as_texts(record["chosen"], "chosen"), as_texts(record["rejected"], "rejected")
    if len(chosen) < 2:
        raise Refused("bad_field", f"chosen has {len(chosen)} answer; it must be a source's and then the target's own")
    messages = as_messages(record["prompt"], "prompt")
    positives = [Answer("source_chosen", text) for text in chosen[:-1]] + [Answer("target_chosen", chosen[-1])]
    negatives = [Answer("source_rejected", text) for text in rejected[:-1]] + [Answer("rejected", rejected[-1])]
    return messages, (positives, negatives)


WRPO = Layout(
    "wrpo",
    "WRPO: a source's answer, the target's own best and its worst",
    (
        Form(
            Kind.wrpo,
            {"prompt_id": TEXT, "prompt": MESSAGE, "chosen": MESSAGES, "rejected": MESSAGES},
            needs=("prompt", "chosen", "rejected"),
            write=_write,
            read=_read,
            answers=(
                AnswerColumns("chosen", ("source_chosen", "target_chosen"), many=True),
                AnswerColumns("rejected", ("source_rejected", "rejected"), many=True),
            ),
        ),
    ),
)
