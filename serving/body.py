"""A request body, read strictly: counted on the stream, plain UTF-8 JSON, then a strict schema.

Web frameworks accept duplicate keys, NaN, UTF-16 and unknown fields, or fail on them with a 500. Here
each is a 4xx that names the place. The one idea: bytes -> JSON value -> schema, an `ApiError` at the
first step that does not hold.
"""

import json
import math
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from serving.errors import ApiError
from serving.schemas import UNSUPPORTED, RequestModel

MAX_DEPTH = 64

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
    """Return the value of UTF-8 JSON without duplicate keys, NaN, infinities, lone surrogates or deep nesting."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("invalid_json", f"the body is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_number)
    except RecursionError:
        raise ApiError("invalid_json", f"the body is nested deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise ApiError("invalid_json", f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # an integer of more digits than Python converts
        raise ApiError("invalid_json", "the body has a number of too many digits") from None
    _check_value(value)
    return value


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ApiError("invalid_json", f"key {duplicate[:64]!r} appears twice in one object")
    return value


def _number(text: str) -> float | int:
    """Return 2.0 as 2: JSON does not tell them apart, and neither do JSON schemas."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _refuse_constant(name: str) -> NoReturn:
    raise ApiError("invalid_json", f"{name} is not JSON; numbers must be finite")


def _check_value(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                _check_text(*item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                _check_text(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ApiError("invalid_json", "a number is too large; numbers must be finite")
        if not below:
            return
        level = below
    raise ApiError("invalid_json", f"the body is nested deeper than {MAX_DEPTH}")


def _check_text(*texts: str) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ApiError("invalid_json", "a string holds half of a surrogate pair, which is not text") from None


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
