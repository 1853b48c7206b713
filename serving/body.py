"""A request body, read strictly: counted on the stream, plain UTF-8 JSON, then a strict schema.

Web frameworks accept duplicate keys, NaN, UTF-16 and unknown fields, or fail on them with a 500. Here
each is a 4xx that names the place. The one idea: bytes -> JSON value -> schema, an `ApiError` at the
first step that does not hold.
"""

from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from fusion import strict_json
from serving.errors import ApiError
from serving.schemas import UNSUPPORTED, RequestModel

MAX_KEYS = 256
"""Of one object in a body; requests have about twenty."""

AnyRequest = TypeVar("AnyRequest", bound=RequestModel)


async def read_json(request: Request, *, max_bytes: int) -> Any:
    """Return the JSON value of a request body of at most `max_bytes`.

    Raises:
        ApiError: unknown_field for a query string, unsupported_media_type, body_too_large or invalid_json.
    """
    if request.url.query:
        raise ApiError("unknown_field", "this route takes no query parameters; send them in the body", param="query")
    _check_media_type(request)
    return parse_json(await _read(request, max_bytes))


def parse_json(body: bytes) -> Any:
    """Return the value of UTF-8 JSON without duplicate keys, NaN, infinities, lone surrogates, deep nesting or huge objects."""
    try:
        return strict_json.parse(body, what="the body", whole_as_int=True, max_keys=MAX_KEYS)
    except strict_json.StrictJsonError as error:
        # No request has so many fields, so one of them is unknown.
        code = "unknown_field" if error.reason == "too_many_keys" else "invalid_json"
        raise ApiError(code, error.message) from None


def parse_model(model: type[AnyRequest], value: Any) -> AnyRequest:
    """Return `value` as a `model`; the first thing wrong becomes an ApiError that names the field."""
    if not isinstance(value, dict):
        raise ApiError("invalid_request", "the body must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_error(error, value) from None


def _check_media_type(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise ApiError("unsupported_media_type", "content-type must be application/json")
    charset = parameters.strip().lower().replace('"', "")
    if charset not in ("", "charset=utf-8", "charset=utf8"):
        raise ApiError("unsupported_media_type", "the body must be UTF-8")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError("unsupported_media_type", "content-encoding is not supported; send the body as it is")


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = ApiError("body_too_large", f"the body is larger than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def _first_error(error: ValidationError, value: Any) -> ApiError:
    problems = error.errors(include_url=False, include_input=False)
    paths = [field_path(_place(problem["loc"], value, missing=problem["type"] == "missing")) for problem in problems]
    # An unknown field is usually the cause of the others. Of a field with several types each has its own problem;
    # the one deepest inside comes from the type that was meant.
    unknown = [i for i, problem in enumerate(problems) if problem["type"] == "extra_forbidden"]
    same = [i for i, path in enumerate(paths) if path == paths[0] or path.startswith((f"{paths[0]}.", f"{paths[0]}["))]
    place = unknown[0] if unknown else max(same, key=lambda i: len(paths[i]))
    problem, param = problems[place], paths[place]
    if problem["type"] == "extra_forbidden":
        if len(problem["loc"]) == 1 and problem["loc"][0] in UNSUPPORTED:
            return ApiError("unsupported_parameter", f"{param} is not supported on this route", param=param)
        return ApiError("unknown_field", f"unknown field {param}", param=param)
    context = problem.get("ctx", {}) if problem["type"] == "api_error" else {}
    code = context.get("code", "invalid_request")
    param = context.get("param") or param
    message = problem["msg"].removeprefix("Value error, ")
    return ApiError(code, f"{param}: {message}" if param else message, param=param or None)


def _place(loc: tuple[int | str, ...], value: Any, *, missing: bool) -> tuple[int | str, ...]:
    """Return the parts of a pydantic location that are places in `value`.

    Where a field may have several types, pydantic adds the type that it tried, which is no place. `missing` says
    that the last part is the name of a field that is not there.
    """
    parts: list[int | str] = []
    for number, part in enumerate(loc):
        if isinstance(part, int):
            parts.append(part)
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and (part in value or (missing and number == len(loc) - 1)):
            parts.append(part)
            value = value.get(part)
    return tuple(parts)


def field_path(loc: tuple[int | str, ...]) -> str:
    """Return a pydantic location as people write it: `input[1].messages[0].role`, cut at 128 characters."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:128]
