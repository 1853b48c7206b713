"""The OpenAPI document of the service, kept true: what FastAPI derives, plus what it cannot know.

Bodies are read by the routes themselves (see `serving.body`), every answer has a request id, every refusal is the
envelope, and a stream is another media type of the same route. Each of these is said here once.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from serving.auth import is_open
from serving.config import Limits
from serving.deadline import TIMEOUT_HEADERS
from serving.errors import STATUS
from serving.schemas import ErrorEnvelope

READ_ERRORS = (401, 429, 500)
"""Statuses of a route that only reads; any key may."""
BODY_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 503)
"""Statuses of a route that reads a body and asks a model. `describe` takes out those that an app never gives."""

_KEY_ERRORS = frozenset({"401", "403"})
_CONFLICT = "409"

_DESCRIPTION = """
Chat with fused models, and rewards for new data.

Every answer carries `x-request-id`; that of the request is kept where it is 1 to 128 letters, digits or `._:-`.
Every answer that is not 2xx is `{"error": {"message", "type", "param", "code"}}`. A path that is not listed is 404
`not_found`; a method that is not listed is 405 `method_not_allowed` with `Allow`. Bodies are UTF-8 JSON without
unknown fields, duplicate keys, NaN or Infinity, nested at most 64 deep, and not compressed. POST routes take no
query parameters. `POST /v1/rewards` knows `Idempotency-Key`: the same key with the same body again gives the stored
answer, with another body 409 `idempotency_conflict`.
"""

_HEADERS = [
    (
        TIMEOUT_HEADERS[-1],
        "Deadline in seconds; it can only lower the service's own. What is not a number above 0 is ignored.",
    ),
    ("x-request-id", "Name of the request in the answer and in logs."),
]

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Name of this request, sent once: sent again with the same body it gets the stored answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}

_REPLAYED = {"description": "The answer is a stored one.", "schema": {"type": "string", "enum": ["true"]}}

_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key. Its scopes say which kinds of model it may use; any key may read the list of models.",
}

_STREAM = """
With `stream: true`: one event `data: <chat.completion.chunk>` per piece, the last ones with a `finish_reason` and,
where `stream_options.include_usage` asks for it, with `usage`; then `data: [DONE]`. An error after the first byte is
one event `data: {"error": {...}}`, after which the stream ends without `[DONE]`.
"""

STREAM_CONTENT = {
    "text/event-stream": {
        # OpenAPI 3.1 has the schema of a stream describe one event.
        "schema": {
            "type": "object",
            "description": _STREAM.strip(),
            "properties": {"data": {"type": "string", "description": "JSON, or `[DONE]`."}},
            "required": ["data"],
        },
        "example": 'data: {"object":"chat.completion.chunk","choices":[...]}\n\ndata: [DONE]\n\n',
    }
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for these statuses: the envelope, with the codes it can hold."""
    return {
        status: {
            "model": ErrorEnvelope,
            "description": " or ".join(f"`{code}`" for code, of in STATUS.items() if of == status),
        }
        for status in statuses
    }


def body_of(model: type[BaseModel], limits: Limits, names: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI entry of a body that the route reads itself; `names` are the models it can ask."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    inlined = _inline(schema, schema.pop("$defs", {}))
    for found in _properties(inlined, "model"):
        found.update(_one_of(names))
    for name in ("input", "responses", "documents", "text_2"):
        for found in _properties(inlined, name):
            for form in (found, *found.get("anyOf", [])):
                if form.get("type") == "array":
                    form["maxItems"] = limits.max_reward_items
    parameters = [
        {"name": name, "in": "header", "required": False, "description": what, "schema": {"type": "string"}}
        for name, what in _HEADERS
    ]
    body = {"required": True, "content": {"application/json": {"schema": inlined}}}
    return {"requestBody": body, "parameters": parameters}


def describe(app: FastAPI, names: Sequence[str], *, keyed: bool, replayed: Collection[str]) -> None:
    """Make `app` show its document with the headers of every answer and request, and without FastAPI's own 422.

    Args:
        app: whose document it is.
        names: its models.
        keyed: True where only holders of a key are answered.
        replayed: paths that know `Idempotency-Key`.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, names, keyed=keyed, replayed=replayed)
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI, names: Sequence[str], *, keyed: bool, replayed: Collection[str]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    for path, operations in document["paths"].items():
        never = {"422", *(() if keyed else _KEY_ERRORS), *(() if path in replayed else (_CONFLICT,))}
        for operation in operations.values():
            for status in never & operation["responses"].keys():
                del operation["responses"][status]
            if keyed and not is_open(path):
                operation["security"] = [{"key": []}]
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path" and parameter["name"] == "model":
                    parameter["schema"] |= _one_of(names)
            for status, answer in operation["responses"].items():
                answer["headers"] = _answer_headers(status)
            if path in replayed:
                operation["parameters"] = [*operation["parameters"], _IDEMPOTENCY_KEY]
                operation["responses"]["200"]["headers"]["idempotency-replayed"] = _REPLAYED
    if keyed:
        document["components"]["securitySchemes"] = {"key": _SCHEME}
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _answer_headers(status: str) -> dict[str, Any]:
    headers = {"x-request-id": {"required": True, "schema": {"type": "string", "minLength": 1, "maxLength": 128}}}
    if status in ("429", "503"):
        again = {"type": "integer", "minimum": 1}
        headers["retry-after"] = {"required": True, "description": "Seconds to wait.", "schema": again}
    return headers


def _inline(value: Any, definitions: dict[str, Any]) -> Any:
    match value:
        case {"$ref": str(ref)}:
            return _inline(definitions[ref.rsplit("/", 1)[1]], definitions)
        case dict():
            return {key: _inline(item, definitions) for key, item in value.items()}
        case list():
            return [_inline(item, definitions) for item in value]
        case _:
            return value


def _properties(schema: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yield every property `name` inside an inlined schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from _properties(item, name)
    elif isinstance(schema, dict):
        if name in (properties := schema.get("properties", {})):
            yield properties[name]
        for item in schema.values():
            yield from _properties(item, name)


def _one_of(names: Sequence[str]) -> dict[str, Any]:
    return {"enum": list(names)} if names else {}
