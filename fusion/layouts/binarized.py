"""Preferences as whole conversations, as in HuggingFaceH4/ultrafeedback_binarized.

`chosen` and `rejected` begin with the prompt, which `prompt` repeats as text and `messages` once more, and have their
scores in `score_chosen` and `score_rejected`.
"""

from fusion.layouts.example import Example, Kind
from fusion.layouts.form import MESSAGES, NUMBER, TEXT, AnswerColumns, Form, Layout, Record
from fusion.layouts.pairs import write_conversations
from fusion.layouts.trl import read_responses


def _write(example: Example) -> Record:
    pair = write_conversations(example)
    return {**pair, "prompt_id": example.prompt.prompt_id, "messages": pair["chosen"]}


BINARIZED = Layout(
    "binarized",
    "UltraFeedback binarized: whole conversations and their scores",
    (
        Form(
            Kind.pair,
            {
                "prompt": TEXT,
                "prompt_id": TEXT,
                "chosen": MESSAGES,
                "rejected": MESSAGES,
                "messages": MESSAGES,
                "score_chosen": NUMBER,
                "score_rejected": NUMBER,
            },
            needs=("chosen", "rejected"),
            write=_write,
            read=read_responses,
            answers=(
                AnswerColumns("chosen", ("chosen",), published={"score": "score_chosen"}),
                AnswerColumns("rejected", ("rejected",), published={"score": "score_rejected"}),
            ),
        ),
    ),
)
