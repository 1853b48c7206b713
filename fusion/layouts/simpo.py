"""The rows of SimPO's on-policy data (princeton-nlp/SimPO, on_policy_data_gen; princeton-nlp/llama3-ultrafeedback-armorm).

Before selection a row has `prompt` (text), `all_generated_responses` and `all_rm_scores`; after it also `chosen` and
`rejected`, whole conversations of the answers with the highest and the lowest score. `prompt_id` is in the published
data sets and not in what the scripts write.
"""

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
    as_texts,
    single_turn,
)
from fusion.layouts.pairs import read_pair, sides, write_conversations

_PUBLISHED = {"score": "all_rm_scores"}
_COLUMNS = {"prompt_id": TEXT, "prompt": TEXT, "all_generated_responses": TEXTS, "all_rm_scores": NUMBERS}


def _write_answers(example: Example) -> Record:
    return {
        "prompt_id": example.prompt.prompt_id,
        "prompt": single_turn(example, "simpo"),
        "all_generated_responses": [answer.text for answer in example.answers],
    }


def _read_answers(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    texts = as_texts(record["all_generated_responses"], "all_generated_responses")
    return as_messages(record["prompt"], "prompt"), ([Answer("responses", text) for text in texts],)


def _write_pair(example: Example) -> Record:
    return {**_write_answers(example), **write_conversations(example)}


def _read_pair(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    messages, chosen, rejected = read_pair(record)
    texts = as_texts(record["all_generated_responses"], "all_generated_responses")
    return messages, (sides(texts, chosen, rejected),)


SIMPO = Layout(
    "simpo",
    "SimPO: all answers to a prompt with their scores, before or after selection",
    (
        Form(
            Kind.pair,
            {**_COLUMNS, "chosen": MESSAGES, "rejected": MESSAGES},
            needs=("prompt", "all_generated_responses", "chosen", "rejected"),
            write=_write_pair,
            read=_read_pair,
            answers=(AnswerColumns("all", ("chosen", "rejected", OTHER), many=True, published=_PUBLISHED),),
        ),
        Form(
            Kind.answers,
            _COLUMNS,
            needs=("prompt", "all_generated_responses"),
            write=_write_answers,
            read=_read_answers,
            answers=(AnswerColumns("all", ("responses",), many=True, published=_PUBLISHED),),
        ),
    ),
)
