"""The two data sets of FuseChat-3.0: FuseAI/FuseChat-3.0-SFT-Data and FuseAI/FuseChat-3.0-DPO-Data, a train.json each.

Their cards do not say the columns. What is here is INFERRED from public programs that read them: both have `dataset`
(`openmathinstruct2` and the like) and `source_model`; the first has `conversations` of {from: human or gpt, value}, the
second `prompt`, `chosen` and `rejected`, each a list of messages of which the first is used. Both sides of a pair are
of one source (FuseChat-3.0, section on data construction), so `source_model` is one name; a pair of two models is
written without it.
"""

from fusion.layouts.example import Answer, Example, Kind
from fusion.layouts.form import MESSAGES, TEXT, Form, Layout, Messages, Record, as_model
from fusion.layouts.llama_factory import TURNS, read_conversations, turn, write_conversations
from fusion.layouts.trl import IMITATED, SIDES, read_responses, write_responses

_SHARED = {"dataset": TEXT, "source_model": TEXT}


def _source(example: Example) -> Record:
    models = {answer.model for answer in example.answers}
    return {"dataset": example.prompt.dataset, "source_model": models.pop() if len(models) == 1 else None}


def _named(record: Record, groups: tuple[list[Answer], ...]) -> tuple[list[Answer], ...]:
    model = record.get("source_model")
    known = None if model is None or model == "" else as_model(model, "source_model")
    return tuple([Answer(answer.role, answer.text, model=known) for answer in group] for group in groups)


def _write_sft(example: Example) -> Record:
    record = write_conversations(example)
    if (system := record.pop("system")) is not None:
        record["conversations"] = [turn("system", system), *record["conversations"]]
    return {**record, **_source(example)}


def _read_sft(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    messages, groups = read_conversations(record)
    return messages, _named(record, groups)


def _write_pair(example: Example) -> Record:
    return {**write_responses(example), **_source(example)}


def _read_pair(record: Record) -> tuple[Messages, tuple[list[Answer], ...]]:
    messages, groups = read_responses(record)
    return messages, _named(record, groups)


FUSECHAT3 = Layout(
    "fusechat3",
    "FuseChat-3.0: SFT-Data and DPO-Data",
    (
        Form(
            Kind.pair,
            {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, **_SHARED},
            needs=("prompt", "chosen", "rejected"),
            write=_write_pair,
            read=_read_pair,
            answers=SIDES,
        ),
        Form(
            Kind.sft,
            {"conversations": TURNS, **_SHARED},
            needs=("conversations",),
            write=_write_sft,
            read=_read_sft,
            answers=IMITATED,
        ),
    ),
)
