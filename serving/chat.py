"""A chat request from its schema to its answer, streamed or whole.

Both forms read the same stream of `Delta`s, so they give the same text, stop at the same token and are
ended the same way. Nothing here knows HTTP, Ray or vLLM.
"""

import dataclasses
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from fusion.rows import Message
from serving import visit
from serving.backends import ChatBackend, Delta, Generation, SampledToken
from serving.config import Limits
from serving.errors import ApiError, trace
from serving.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatMessage,
    ChoiceLogprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)

logger = logging.getLogger(__name__)


def prepare(request: ChatCompletionRequest, backend: ChatBackend, *, limits: Limits) -> Generation:
    """Return what the engine is asked for; the prompt is rendered and encoded here.

    Raises:
        ApiError: the conversation cannot be rendered, or prompt and answer do not fit the model.
    """
    name, asked = "max_tokens", request.max_tokens
    if asked is None:
        name, asked = "max_completion_tokens", request.max_completion_tokens
    if asked is not None and asked > limits.max_tokens:
        raise ApiError("invalid_request", f"{name} is {asked}; this service allows {limits.max_tokens}", param=name)
    _check_roles(request.messages)
    prompt_ids = encode(backend, request.messages)
    room = backend.card.max_tokens - len(prompt_ids)
    if room < 1 or (asked is not None and asked > room):
        raise ApiError(
            "context_length_exceeded",
            f"the prompt has {len(prompt_ids)} tokens and {asked or 1} are asked for; "
            f"{request.model} has room for {backend.card.max_tokens}",
            param="messages",
        )
    return Generation(
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        prompt_ids=tuple(prompt_ids),
        max_tokens=asked if asked is not None else min(room, limits.max_tokens),
        stop_token_ids=backend.stop_token_ids,
        temperature=request.temperature,
        top_p=request.top_p,
        n=request.n or 1,
        stop=request.stops,
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def _check_roles(messages: Sequence[ChatMessage]) -> None:
    roles = [message.role for message in messages]
    if roles[-1] != "user":
        where = f"messages[{len(roles) - 1}].role"
        raise ApiError("invalid_roles", "the last message must be the user's", param=where)
    if "system" in roles[1:]:
        where = f"messages[{roles.index('system', 1)}].role"
        raise ApiError("invalid_roles", "a system message must be the first", param=where)


def encode(backend: ChatBackend, messages: Sequence[ChatMessage]) -> list[int]:
    """Return the ids of a rendered prompt; a template that refuses the conversation becomes a 400."""
    try:
        return backend.encode(to_messages(messages))
    except ValueError as error:
        reason = (str(error).splitlines() or ["the template refused it"])[0]
        raise ApiError("invalid_roles", f"the conversation cannot be rendered: {reason}", param="messages") from None


def to_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return the rows of the messages of a request."""
    return tuple(Message(role=message.role, content=message.content) for message in messages)


async def complete(generation: Generation, backend: ChatBackend, *, model: str) -> ChatCompletion:
    """Return the whole answer."""
    texts = [""] * generation.n
    reasons: list[Any] = [None] * generation.n
    tokens: list[list[SampledToken]] = [[] for _ in range(generation.n)]
    num_tokens = 0
    async with aclosing(_pieces(dataclasses.replace(generation, whole=True), backend)) as stream:
        async for deltas in stream:
            for delta in deltas:
                texts[delta.index] += delta.text
                tokens[delta.index].extend(delta.tokens)
                num_tokens += delta.num_tokens
                reasons[delta.index] = delta.finish_reason or reasons[delta.index]
    if None in reasons:
        raise ApiError("backend_unavailable", "the engine ended before the answer did")
    choices = [
        ChatChoice(
            index=index,
            message=AssistantMessage(content=texts[index]),
            finish_reason=reasons[index],
            logprobs=None if generation.num_logprobs is None else _logprobs(tokens[index], backend),
        )
        for index in range(generation.n)
    ]
    return ChatCompletion(
        id=generation.request_id,
        created=int(time.time()),
        model=model,
        system_fingerprint=backend.card.revision,
        choices=choices,
        usage=_usage(generation, num_tokens),
    )


async def chunks(
    generation: Generation, backend: ChatBackend, *, model: str, include_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer as OpenAI's `chat.completion.chunk` objects.

    The first chunk of each answer carries the role, the last one the finish reason and no text.
    """
    head = {
        "id": generation.request_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": backend.card.revision,
    }
    # Clients that asked for usage expect the key on every chunk.
    tail: dict[str, Any] = {"usage": None} if include_usage else {}
    started: set[int] = set()
    open_answers, num_tokens = generation.n, 0
    async with aclosing(_pieces(generation, backend)) as stream:
        async for deltas in stream:
            for delta in deltas:
                num_tokens += delta.num_tokens
                for choice in _stream_choices(delta, generation, backend, first=delta.index not in started):
                    yield {**head, "choices": [choice], **tail}
                started.add(delta.index)
                open_answers -= delta.finish_reason is not None
    if open_answers:
        raise ApiError("backend_unavailable", "the engine ended before the answer did")
    if include_usage:
        yield {**head, "choices": [], "usage": _usage(generation, num_tokens).model_dump()}


async def events(stream: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events of `stream`, then `[DONE]`; an error becomes an error event that ends it instead."""
    try:
        async with aclosing(stream):
            async for chunk in stream:
                yield event(chunk)
    except ApiError as error:
        visit.note_error(error.code)
        yield event(error.body())
        return
    except Exception as error:
        logger.error("a stream failed: %s", trace(error))
        visit.note_error("internal_error")
        yield event(ApiError("internal_error", "the answer failed on the server").body())
        return
    yield b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


async def _pieces(generation: Generation, backend: ChatBackend) -> AsyncGenerator[list[Delta], None]:
    """Yield the engine's pieces; n greedy answers are the same one, which vLLM refuses to make n times."""
    if generation.temperature != 0 or generation.n == 1:
        copies, asked = 1, generation
    else:
        copies, asked = generation.n, dataclasses.replace(generation, n=1)
    visit.count_prompt(len(generation.prompt_ids))
    async with aclosing(backend.generate(asked)) as stream:
        async for deltas in stream:
            visit.count_answer(sum(delta.num_tokens for delta in deltas))
            if copies == 1:
                yield deltas
            else:
                yield [dataclasses.replace(delta, index=index) for index in range(copies) for delta in deltas]


def _stream_choices(
    delta: Delta, generation: Generation, backend: ChatBackend, *, first: bool
) -> Iterable[dict[str, Any]]:
    logprobs = None
    if generation.num_logprobs is not None and delta.tokens:
        logprobs = _logprobs(list(delta.tokens), backend).model_dump()
    if first:
        role = {"role": "assistant", "content": ""}
        yield {"index": delta.index, "delta": role, "logprobs": None, "finish_reason": None}
    if delta.text or logprobs:
        yield {"index": delta.index, "delta": {"content": delta.text}, "logprobs": logprobs, "finish_reason": None}
    if delta.finish_reason is not None:
        yield {"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": delta.finish_reason}


def _usage(generation: Generation, num_tokens: int) -> Usage:
    prompt = len(generation.prompt_ids)
    return Usage(prompt_tokens=prompt, completion_tokens=num_tokens, total_tokens=prompt + num_tokens)


# -inf is not a JSON number; OpenAI sends -9999.0 for tokens that cannot be sampled.
_LOWEST_LOGPROB = -9999.0


def _logprobs(tokens: list[SampledToken], backend: ChatBackend) -> ChoiceLogprobs:
    content = []
    for token in tokens:
        top = [_top(token_id, logprob, backend) for token_id, logprob in token.top]
        own = _top(token.token_id, token.logprob, backend)
        content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChoiceLogprobs(content=content)


def _top(token_id: int, logprob: float, backend: ChatBackend) -> TopLogprob:
    text = backend.token_text(token_id)
    # A token may be a part of a character; then its bytes are not known from its text.
    data = None if "\ufffd" in text else list(text.encode())
    return TopLogprob(token=text, logprob=max(logprob, _LOWEST_LOGPROB), bytes=data)
