"""What people type, and the fingerprint of it.

Two bases that never mix: a `Config` says *what* a result is and enters stage keys; a `Placement`
says where and how fast it is computed and never does. `fingerprint` turns declared values into a
key; it refuses whatever has no stable form, so that the same key always means the same thing.
"""

import difflib
import hashlib
import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

KEY_HEX = 12
"""Hex digits of a key that are shown in paths and messages."""


class _Strict(BaseModel):
    """What both bases share: frozen, no unknown fields, finite numbers, field docs under the field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _suggest_names(cls, data: Any) -> Any:
        """Name an unknown field together with the nearest known one, which pydantic's own error lacks."""
        if isinstance(data, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()} | set(cls.model_fields)
            for name in data:
                if name not in known:
                    near = difflib.get_close_matches(str(name), known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(sorted(known))}"
                    raise PydanticCustomError(
                        "unknown_field", "unknown field '{name}'; {hint}", {"name": name, "hint": hint}
                    )
        return data


class Config(_Strict):
    """Base of everything that defines a result. Enters stage keys."""


def later_field(default: Any, **constraints: Any) -> Any:
    """Return a field that came after others had made results without it; `constraints` are those of pydantic's Field.

    At its default, which must mean what was done before it came, it is in no dump and so in no key: finished results stay
    valid, and a training that was under way goes on.
    """
    return Field(default=default, exclude_if=lambda value: value == default, **constraints)


class Placement(_Strict):
    """Base of everything about where and how fast a stage runs. Never part of a key."""


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, finite numbers, tuples as lists.

    Raises:
        TypeError: `value` holds something without a stable form (a set, a Placement, an object).
        ValueError: `value` holds NaN or an infinity.
    """
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _plain(value: Any, where: str) -> Any:
    match value:
        case Placement():
            raise TypeError(f"{where}: a Placement cannot enter a key; identity and placement are two types")
        case BaseModel():
            return _plain(value.model_dump(mode="python"), where)
        case None | bool() | int() | str():
            # A StrEnum is a str; str() drops the enum class so that both spell the same.
            return str(value) if isinstance(value, str) else value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{where}: {value} has no place in a key; use a finite number")
            return value
        case list() | tuple():
            return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{where}: key {key!r} is not a string; use string keys")
            return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
        case _:
            raise TypeError(
                f"{where}: {type(value).__name__} has no stable form; declare it as a number, text, list or mapping"
            )
