"""Raw records into prompts: the one place that decides what a usable prompt is.

Field names are those people have: `id` or `prompt_id`; `prompt` (text, or a list of messages as in TRL)
or `messages`; `reference` or `answer`; `tests`; `entry_point`; `domain` (see `fields.py` for others). A record that cannot be a prompt
gives a reason code and a detail, never an exception and never a silent gap.
"""

import hashlib
import json
import math
from typing import Any

from fusion.rows import Message, Prompt

MAX_CHARS = 200_000
"""Longest conversation that is taken, in characters; longer ones exceed every context in use."""

ROLES = ("system", "user", "assistant")


class Refused(ValueError):
    """A record that cannot be a prompt: `reason` is a short code that is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def to_prompt(record: dict[str, Any], *, domain: str | None, dataset: str | None = None) -> Prompt:
    """Return the prompt of a raw record.

    Args:
        record: its fields, with our names.
        domain: domain of the whole set; None takes the record's own.
        dataset: name of the set, which the prompt carries.

    Raises:
        Refused: with one of the reasons missing_prompt, empty_prompt, bad_messages, bad_field,
            too_long, bad_unicode, missing_domain.
    """
    messages = messages_of(record)
    where = domain if domain is not None else record.get("domain")
    if not isinstance(where, str) or not where:
        raise Refused("missing_domain", "no domain in the record and none given for the set")
    prompt = Prompt(
        prompt_id=_prompt_id(record, where, messages),
        domain=where,
        messages=messages,
        reference=_reference(record),
        tests=_tests(record.get("tests")),
        entry_point=_text(record, "entry_point"),
        dataset=dataset,
    )
    _check_text(prompt)
    return prompt


def messages_of(record: dict[str, Any]) -> tuple[Message, ...]:
    """Return the conversation of a raw record, which ends with a user turn; raises Refused like `to_prompt`."""
    raw = record.get("messages") if record.get("messages") is not None else record.get("prompt")
    if raw is None:
        raise Refused("missing_prompt", f"no prompt or messages field; it has: {', '.join(map(str, record))}")
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    if not isinstance(raw, list) or not all(isinstance(turn, dict) for turn in raw):
        raise Refused("bad_messages", "prompt must be text or a list of {role, content}")
    messages = []
    for number, turn in enumerate(raw):
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise Refused("bad_messages", f"message {number} needs a role of {', '.join(ROLES)} and text content")
        messages.append(Message(role, content))
    turns = [m.role for m in messages if m.role != "system"]
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if any(m.role == "system" for m in messages[1:]) or turns != expected or not turns or turns[-1] != "user":
        raise Refused("bad_messages", "turns must be [system], user, assistant, user, ... and end with user")
    if not messages[-1].content.strip():
        raise Refused("empty_prompt", "the last user turn is empty")
    return tuple(messages)


def _prompt_id(record: dict[str, Any], domain: str, messages: tuple[Message, ...]) -> str:
    raw = record.get("prompt_id") if record.get("prompt_id") is not None else record.get("id")
    if raw is None or raw == "":
        return f"{domain}-{content_digest(messages)[:16]}"
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise Refused("bad_field", f"id is a {type(raw).__name__}, not text or a whole number")
    if len(str(raw)) > 256 or any(ord(c) < 32 for c in str(raw)):
        raise Refused("bad_field", "id is longer than 256 characters or holds control characters")
    return str(raw)


def _reference(record: dict[str, Any]) -> str | None:
    """Return the gold answer: a number that is none (NaN) is a missing one, as data frames write it."""
    for value in (record.get("reference"), record.get("answer")):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise Refused("bad_field", f"reference is a {type(value).__name__}, not text or a number")
        if isinstance(value, float) and math.isinf(value):
            raise Refused("bad_field", "reference is an infinite number; write a finite one, or text")
        return str(value)
    return None


def _tests(raw: Any) -> tuple[str, ...]:
    """Return the tests; one that is an object (`{"input": ..., "output": ...}`) is its JSON text."""
    if raw is None:
        return ()
    tests = raw if isinstance(raw, list) else [raw]
    if not all(isinstance(test, str | dict) for test in tests):
        raise Refused("bad_field", "tests must be text, an object, or a list of those")
    return tuple(test if isinstance(test, str) else _as_json(test) for test in tests)


def _as_json(test: dict[str, Any]) -> str:
    try:
        return json.dumps(test, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("bad_field", f"a test cannot be written as JSON: {error}") from None


def _text(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused("bad_field", f"{name} is a {type(value).__name__}, not text")
    return value


def _check_text(prompt: Prompt) -> None:
    length = sum(len(m.content) for m in prompt.messages)
    if length > MAX_CHARS:
        raise Refused("too_long", f"{length} characters, at most {MAX_CHARS}")
    fields = [prompt.prompt_id, prompt.domain, prompt.reference or "", *prompt.tests, prompt.entry_point or ""]
    for text in [*fields, *(m.content for m in prompt.messages)]:
        check_unicode(text)


def check_unicode(text: str) -> None:
    """Raise Refused where a text cannot be written to a file."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("bad_unicode", "holds a lone surrogate, which has no UTF-8 form") from None


def content_digest(messages: tuple[Message, ...]) -> str:
    """Return a sha256 of a conversation with white space folded: equal prompts give equal digests."""
    plain = [[m.role, " ".join(m.content.split())] for m in messages]
    return hashlib.sha256(json.dumps(plain).encode("utf-8", "surrogatepass")).hexdigest()
