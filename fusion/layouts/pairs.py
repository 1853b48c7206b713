"""The two ways in which published pairs hold their sides: responses alone, and whole conversations with the prompt in them.

In a whole conversation the prompt is said three times (in `prompt` and in both sides); it is taken once, and a row
whose three prompts differ is refused, because a pair of answers to different questions teaches nothing.
"""

from typing import Any

from fusion.layouts.example import OTHER, Answer, Example
from fusion.layouts.form import Messages, Record, as_conversation, as_messages, as_text, assistant, messages_of, only
from fusion.promptsets.records import Refused


def read_pair(record: Record) -> tuple[Messages, str, str]:
    """Return prompt, chosen and rejected of a record with `chosen`, `rejected` and, for responses alone, `prompt`.

    Raises:
        Refused: prompt_mismatch where they are answers to different prompts; bad_messages; missing_prompt.
    """
    chosen, rejected, asked = record["chosen"], record["rejected"], record.get("prompt")
    if not any(isinstance(side, list) and len(side) > 1 for side in (chosen, rejected)):
        if asked is None:
            raise Refused("missing_prompt", "no prompt column, and chosen and rejected hold no conversation")
        return as_messages(asked, "prompt"), as_text(chosen, "chosen"), as_text(rejected, "rejected")
    (messages, better), (other, worse) = as_conversation(chosen, "chosen"), as_conversation(rejected, "rejected")
    if _turns(messages) != _turns(other):
        raise Refused("prompt_mismatch", "chosen and rejected are answers to different prompts")
    check_prompt(asked, messages)
    return messages, better, worse


def check_prompt(asked: Any, messages: Messages) -> None:
    """Raise Refused (prompt_mismatch) where `prompt` (text or messages, or None) is not the prompt of a conversation."""
    if asked is None:
        return
    if isinstance(asked, str):  # its first user turn: what data sets of several turns put there
        same = asked == next((turn.get("content") for turn in messages if turn.get("role") == "user"), None)
    else:
        same = _turns(as_messages(asked, "prompt")) == _turns(messages)
    if not same:
        raise Refused("prompt_mismatch", "prompt is not the prompt that the conversation begins with")


def _turns(messages: Messages) -> list[tuple[Any, Any]]:
    return [(turn.get("role"), turn.get("content")) for turn in messages]


def write_conversations(example: Example) -> Record:
    """Return `prompt` (the first user turn), `chosen` and `rejected` as whole conversations."""
    messages = messages_of(example.prompt.messages)
    return {
        "prompt": next(turn["content"] for turn in messages if turn["role"] == "user"),
        "chosen": [*messages, assistant(only(example, "chosen").text)],
        "rejected": [*messages, assistant(only(example, "rejected").text)],
    }


def sides(texts: list[str], chosen: str, rejected: str) -> list[Answer]:
    """Return all answers to a prompt with the roles that they have in its pair; of equal texts the first is taken.

    Raises:
        Refused: a side that is not among the answers.
    """
    roles = [OTHER] * len(texts)
    for role, text in (("chosen", chosen), ("rejected", rejected)):
        place = next((i for i, one in enumerate(texts) if one == text and roles[i] == OTHER), None)
        if place is None:
            raise Refused("not_among_answers", f"{role} is not one of the {len(texts)} answers of the row")
        roles[place] = role
    return [Answer(role, text) for role, text in zip(roles, texts, strict=True)]
