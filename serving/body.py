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

AnyRequest = TypeVar("AnyRequest", bound=RequestModel)


async def read_json(request: Request, *, max_bytes: int) -> Any:
    """Return the JSON value of a request body of at most `max_bytes`.

    Raises:
        ApiError: unsupported_media_type, body_too_large or invalid_json.
    """
    _check_media_type(request)
    return parse_json(await _read(request, max_bytes))


def parse_json(body: bytes) -> Any:
    """Return the value of UTF-8 JSON without duplicate keys, NaN, infinities, lone surrogates or deep nesting."""
    try:
        return strict_json.parse(body, what="the body")
    except strict_json.StrictJsonError as error:
        raise ApiError("invalid_json", error.message) from None


def parse_model(model: type[AnyRequest], value: Any) -> AnyRequest:
    """Return `value` as a `model`; the first thing wrong becomes an ApiError that names the field."""
    if not isinstance(value, dict):
        raise ApiError("invalid_request", "the body must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_error(error) from None


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


def _first_error(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_input=False)
    # An unknown field is usually the cause of the others.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    param = field_path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        if len(problem["loc"]) == 1 and problem["loc"][0] in UNSUPPORTED:
            return ApiError("unsupported_parameter", f"{param} is not supported by this service", param=param)
        return ApiError("unknown_field", f"unknown field {param}", param=param)
    context = problem.get("ctx", {}) if problem["type"] == "api_error" else {}
    code = context.get("code", "invalid_request")
    param = context.get("param") or param
    message = problem["msg"].removeprefix("Value error, ")
    return ApiError(code, f"{param}: {message}" if param else message, param=param or None)


def field_path(loc: tuple[int | str, ...]) -> str:
    """Return a pydantic location as people write it: `input[1].messages[0].role`, cut at 128 characters."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:128]
