"""Typed YAML: files and `--set` laid over each other, and a mistake named by file, field and nearest name.

The one idea: a YAML file that people type is strict. Nothing in it is guessed, aliased or repeated, and what
does not fit its model is one line that says where it stands.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fusion.errors import RecipeError

Typed = TypeVar("Typed", bound=BaseModel)


KEY = "[key]"
"""What pydantic puts behind a key of a map that is wrong itself."""


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: no tags, no aliases, no duplicate keys, only text keys."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"line {line}: key {key!r} is not text; quote it")
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"line {line}: key {key!r} occurs twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
# 3e-7 is a number to everybody but YAML 1.1, which wants 3.0e-7.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML strictly.

    Raises:
        RecipeError: with the line, for syntax errors, tags, aliases, duplicate or non-text keys.
    """
    try:
        for event in yaml.parse(text, _StrictLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise RecipeError(
                    f"{where}: line {line}: aliases (*{event.anchor}) are not allowed; write the value out"
                )
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise RecipeError(f"{where}: {place}{error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{where}: {(str(error).splitlines() or ['not YAML'])[0]}") from None


def merge(base: Any, over: Any) -> Any:
    """Lay `over` on `base`: maps merge, everything else, and maps of another `type` or objective, is replaced whole."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    objective = base.get("objective", "dpo")  # what a WRPO loss that states none is over
    if "type" in over and over["type"] != base.get("type", over["type"]):
        return over
    if "type" in over and over.get("objective", objective) != objective:
        return over
    return {**base, **{k: merge(base[k], v) if k in base else v for k, v in over.items()}}


def read_layers(
    paths: Sequence[Path], assignments: Sequence[str] = (), *, called: str, base: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Read files left to right and lay `key.sub=value` assignments over them.

    Args:
        paths: the files; later ones win.
        assignments: values laid over all of them.
        called: what such a file is, for messages.
        base: what the first file is laid over.

    Raises:
        RecipeError: one line with file and place.
    """
    data: Any = base or {}
    for path in paths:
        data = merge(data, _read(path, called))
    for assignment in assignments:
        data = merge(data, _assigned(assignment, data))
    return data


def validate(model: type[Typed], data: Any, *, where: str) -> Typed:
    """Return `data` as `model`.

    Raises:
        RecipeError: one line per mistake, each with `where`, the field and what to do.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [f"{where}: {_where(data, e['loc'])}{_what(e)}" for e in _own(error.errors())]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from None


def _own(errors: Sequence[Any]) -> list[Any]:
    """Leave out that a list is too short where it only is because an item of it is wrong, which has a line of its own."""
    places = [e["loc"] for e in errors]
    return [
        e
        for e in errors
        if e["type"] != "too_short"
        or not any(len(p) > len(e["loc"]) and p[: len(e["loc"])] == e["loc"] for p in places)
    ]


def _read(path: Path, called: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{called} {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{called} {path} cannot be read: {error}") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{called} {path} holds {type(data).__name__}, not a mapping of fields")
    return data


def _assigned(assignment: str, data: Any) -> dict[str, Any]:
    """Turn `a.b.c=value` into nested maps; the path walks through maps only."""
    name, equals, text = assignment.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {assignment}: write it as field.sub=value")
    for depth, key in enumerate(keys[:-1]):
        data = data.get(key) if isinstance(data, dict) else None
        if data is not None and not isinstance(data, dict):
            raise RecipeError(f"--set {assignment}: {'.'.join(keys[: depth + 1])} is not a map; set it as a whole")
    nested: Any = parse_yaml(text, f"--set {name}")
    for key in reversed(keys):
        nested = {key: nested}
    return nested


def _where(data: Any, location: tuple[int | str, ...]) -> str:
    """Spell a pydantic location as people wrote it: union tags, which stand in no file, are left out."""
    if location[-1:] == (KEY,):
        location = location[:-2]  # the message has the key
    shown = []
    for item in location:
        if isinstance(data, dict) and item not in data and item in _tags(data):
            continue
        shown.append(f"[{item}]" if isinstance(item, int) else f".{item}" if shown else str(item))
        if isinstance(data, dict):
            data = data.get(item)
        elif isinstance(data, list | tuple) and isinstance(item, int) and item < len(data):
            data = data[item]
        else:
            data = None
    return f"{''.join(shown)}: " if shown else ""


def _tags(data: dict[str, Any]) -> tuple[Any, ...]:
    """What a union may have been told apart by: what is written, or what is meant where nothing is."""
    kinds = (data["type"],) if "type" in data else ("model", "ratio", "shares")
    return (*kinds, data.get("objective", "dpo"))


def _what(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if error["loc"][-1:] == (KEY,):
        return _what_of_key(error, message)
    if error["type"] == "missing":
        return "is missing; it has no default"
    if error["type"] == "unknown_field":
        return message + _merged_type(error)
    if error["type"] == "value_error":
        return message
    shown = repr(error["input"])
    return f"{message} (found {shown if len(shown) < 80 else shown[:77] + '...'})"


def _what_of_key(error: Any, message: str) -> str:
    key = str(error["input"])
    known = re.findall(r"'([^']*)'", str(error.get("ctx", {}).get("expected", "")))
    if not known:
        return f"key {key!r}: {message}"
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}")


def _merged_type(error: Any) -> str:
    """Name the type that an unknown field was held against; an overlay that states none is merged into what is there."""
    kind = error["input"].get("type") if isinstance(error["input"], dict) else None
    if kind is None or "did you mean" in error["msg"]:
        return ""
    return f" (for type {kind}; for another, state its type)"
