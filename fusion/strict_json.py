"""JSON that means one thing: UTF-8, no duplicate keys, finite numbers, whole characters, bounded depth.

Python's own reader takes more: the last of two equal keys, NaN, half a surrogate pair. The service's bodies
and the lines of files to score are read here, so that both refuse the same texts. Messages tell the place and
the kind of fault, never the text that was read.
"""

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 64


class StrictJsonError(ValueError):
    """Bytes that are not strict JSON. `reason` is a short code that can be counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def parse(data: bytes, *, what: str, whole_as_int: bool = False, max_keys: int | None = None) -> Any:
    """Return the JSON value of `data`.

    Args:
        what: how messages call the data, e.g. "the body".
        whole_as_int: reads 2.0 as 2, which JSON schemas do not tell apart; columns that are handed on keep what they are.
        max_keys: of one object; who checks each key later must not be sent a million of them.

    Raises:
        StrictJsonError: bad_utf8, bad_json, bad_number, bad_unicode, duplicate_key, too_many_keys or too_deep.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError("bad_utf8", f"{what} is not UTF-8 at byte {error.start}") from None
    number = _whole_as_int if whole_as_int else float
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=number)
    except RecursionError:
        raise _too_deep(what) from None
    except json.JSONDecodeError as error:
        raise StrictJsonError("bad_json", f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except StrictJsonError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        raise StrictJsonError("bad_number", f"{what} has a number of too many digits") from None
    _check_value(value, what, math.inf if max_keys is None else max_keys)
    return value


def check_text(*texts: str) -> None:
    """Raise StrictJsonError (bad_unicode) if one of `texts` has no UTF-8 form."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise StrictJsonError("bad_unicode", "a string holds half of a surrogate pair, which is not text") from None


def _whole_as_int(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise StrictJsonError("duplicate_key", f"key {duplicate[:64]!r} appears twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError("bad_number", f"{name} is not JSON; numbers must be finite")


def _check_value(value: Any, what: str, max_keys: float) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if len(item) > max_keys:
                    raise StrictJsonError("too_many_keys", f"{what} has an object with more than {max_keys} keys")
                check_text(*item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                check_text(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise StrictJsonError("bad_number", "a number is too large; numbers must be finite")
        if not below:
            return
        level = below
    raise _too_deep(what)


def _too_deep(what: str) -> StrictJsonError:
    return StrictJsonError("too_deep", f"{what} is nested deeper than {MAX_DEPTH}")
