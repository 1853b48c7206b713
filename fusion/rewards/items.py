"""What an item to score means: which conversations it holds, and which of them may be scored.

The one place for `POST /v1/rewards` and for `fuseline score`, so that both give a reward model the same
conversations and refuse the same ones. Three forms: `messages` that end with the assistant's turn, `prompt` with
one `response`, `prompt` with several `responses`. HTTP checks types by its schema and starts at `conversations`;
rows of files, in which anything may stand, go through `read_item`, which also takes the names of TRL.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fusion import strict_json
from fusion.rows import Message

Conversation = tuple[Message, ...]
Normalize = Literal["sigmoid"]

ROLES = ("system", "user", "assistant")
MAX_ID_CHARS = 128
MAX_TURNS = 1024
MAX_RESPONSES = 1024
"""Responses in one row of a file."""
MAX_ITEM_BYTES = 4 << 20
"""Text in one row of a file; what the service takes in one request by default."""

CONVERSATION_FIELDS = ("messages", "prompt", "response", "responses", "completion")
"""Fields of a row that are read; all others but `id` are the user's own."""


class Refused(ValueError):
    """A row or a conversation that cannot be scored: `reason` is a short code that is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A row of a file as what it asks for.

    Example: `{"id": "a", "prompt": "2+2?", "responses": ["4", "5"]}` has two conversations, numbered 0 and 1.
    """

    id: str | None
    conversations: tuple[tuple[int | None, Conversation], ...]
    """With the number of the response, None where the item has one response and not a list."""


# ---- shared with the service ------------------------------------------------------------------


def conversations(
    *,
    messages: Conversation | None = None,
    prompt: str | Conversation | None = None,
    response: str | Conversation | None = None,
    responses: Sequence[str | Conversation] | None = None,
) -> list[tuple[int | None, Conversation]]:
    """Return the conversations of an item with the number of each response; K responses give K, next to each other.

    Exactly one form must be given. A `prompt` that is text is one user turn; a response that is text is one
    assistant turn.
    """
    if messages is not None:
        return [(None, messages)]
    assert prompt is not None, "an item without messages has a prompt"
    before = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    if responses is not None:
        return [(number, before + _answer(text)) for number, text in enumerate(responses)]
    assert response is not None, "an item with a prompt has a response or responses"
    return [(None, before + _answer(response))]


def _answer(response: str | Conversation) -> Conversation:
    return (Message("assistant", response),) if isinstance(response, str) else response


def refusal(conversation: Conversation, *, allow_empty: bool) -> Refused | None:
    """Return why a conversation must not be scored (invalid_roles, empty_response), None where it may be."""
    roles = [turn.role for turn in conversation]
    if not roles or roles[-1] != "assistant":
        return Refused("invalid_roles", "the last message must be the assistant's")
    if len(roles) < 2 or "system" in roles[1:]:
        return Refused("invalid_roles", "a conversation is an optional system turn, then user and assistant turns")
    if not conversation[-1].content and not allow_empty:
        return Refused("empty_response", "the response is empty; ask for allow_empty to score it all the same")
    return None


def normalized(score: float, normalize: Normalize | None) -> float:
    """Return the score as it is, or mapped to 0..1 by the logistic function."""
    if normalize is None:
        return score
    # Written for both signs, because exp overflows for a large argument.
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


# ---- rows of files ----------------------------------------------------------------------------


def read_item(record: Mapping[str, Any]) -> Item:
    """Return what a row of a file asks for. A field that is null counts as absent; other fields are not looked at.

    TRL's forms are taken too: `prompt` as a list of messages, and `completion`, text or a list of messages, for
    `response`.

    Raises:
        Refused: bad_field, missing_field, ambiguous_fields, bad_messages, bad_unicode, too_many_responses or too_long.
    """
    given = {name: record[name] for name in CONVERSATION_FIELDS if record.get(name) is not None}
    _check_form(tuple(given), record)
    read = {name: _FIELDS[name](name, value) for name, value in given.items()}
    if "completion" in read:
        read["response"] = read.pop("completion")
    found = conversations(**read)
    _check_text(found, named := item_id(record))
    return Item(named, tuple(found))


def item_id(record: Mapping[str, Any]) -> str | None:
    """Return the row's own id, None where it has none. Raises Refused (bad_field) for one that cannot be one."""
    raw = record.get("id")
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise Refused("bad_field", f"id is a {type(raw).__name__}, not text or a whole number")
    if not 1 <= len(str(raw)) <= MAX_ID_CHARS:
        raise Refused("bad_field", f"id has {len(str(raw))} characters; 1 to {MAX_ID_CHARS} are taken")
    return str(raw)


_FORMS = {
    ("messages",),
    ("prompt", "response"),
    ("prompt", "responses"),
    ("prompt", "completion"),
}


def _check_form(given: tuple[str, ...], record: Mapping[str, Any]) -> None:
    if given in _FORMS:
        return
    wanted = "messages, or prompt and response, or prompt and responses"
    if any(set(given) < set(form) for form in _FORMS):
        has = ", ".join(list(map(str, record))[:12]) or "no field at all"
        raise Refused("missing_field", f"give {wanted}; it has: {has}"[:500])
    raise Refused("ambiguous_fields", f"give {wanted}; it has {' and '.join(given)}")


def _text_or_turns(name: str, value: Any) -> str | Conversation:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _turns(name, value)
    raise Refused("bad_field", f"{name} is a {type(value).__name__}, not text or a list of messages")


def _turns(name: str, value: Any) -> Conversation:
    if not isinstance(value, list):
        raise Refused("bad_field", f"{name} is a {type(value).__name__}, not a list of messages")
    if not 1 <= len(value) <= MAX_TURNS:
        raise Refused("bad_messages", f"{name} has {len(value)} messages; 1 to {MAX_TURNS} are taken")
    return tuple(_turn(f"{name}[{number}]", turn) for number, turn in enumerate(value))


def _turn(name: str, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Refused("bad_messages", f"{name} is a {type(turn).__name__}, not an object with role and content")
    # A tool call or an image that is left out would give the score of another conversation.
    more = [key for key, value in turn.items() if key not in ("role", "content") and value is not None]
    if more:
        raise Refused("bad_messages", f"{name} has {str(more[0])[:64]!r}; a message has role and content only")
    if turn.get("role") not in ROLES:
        raise Refused("bad_messages", f"{name}.role must be one of {', '.join(ROLES)}")
    if not isinstance(turn.get("content"), str):
        raise Refused("bad_messages", f"{name}.content is a {type(turn.get('content')).__name__}, not text")
    return Message(turn["role"], turn["content"])


def _responses(name: str, value: Any) -> list[str | Conversation]:
    if not isinstance(value, list):
        raise Refused("bad_field", f"{name} is a {type(value).__name__}, not a list of texts")
    if not value:
        raise Refused("bad_field", f"{name} is an empty list")
    if len(value) > MAX_RESPONSES:
        raise Refused("too_many_responses", f"{len(value)} responses in one row, at most {MAX_RESPONSES}")
    return [_text_or_turns(f"{name}[{number}]", response) for number, response in enumerate(value)]


_FIELDS = {
    "messages": _turns,
    "prompt": _text_or_turns,
    "response": _text_or_turns,
    "responses": _responses,
    "completion": _text_or_turns,
}


def _check_text(found: Sequence[tuple[int | None, Conversation]], named: str | None) -> None:
    """Refuse text without a UTF-8 form and rows of more text than the service takes; a shared prompt counts once."""
    size = 0
    seen: set[int] = set()
    try:
        strict_json.check_text(named or "")
        for _, conversation in found:
            for turn in conversation:
                if id(turn) not in seen:
                    seen.add(id(turn))
                    size += len(turn.content.encode("utf-8"))
    except (strict_json.StrictJsonError, UnicodeEncodeError):
        raise Refused("bad_unicode", "a string holds half of a surrogate pair, which is not text") from None
    if size > MAX_ITEM_BYTES:
        raise Refused("too_long", f"{size} bytes of text in one row, at most {MAX_ITEM_BYTES}")
