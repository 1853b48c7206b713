"""The kinds of tests that a code prompt can have, read from the texts of `Prompt.tests`.

| text | kind |
|---|---|
| Python, e.g. `assert f([3, 1]) == [1, 3]` or `def check(candidate): …` | asserts that call functions of the program |
| `{"input": "3\\n", "output": "6\\n"}` | the program reads stdin and prints |
| `{"args": [3], "kwargs": {}, "expected": 6}` | a call of the entry point; `kwargs` may be left out |

JSON has no tuples, sets or bytes, and values are compared by type, so tests of those are written as asserts.
"""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Asserts:
    """A test in Python."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Printing:
    """What a program prints when it reads this."""

    stdin: str
    stdout: str


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What the entry point returns when it is called with these."""

    args: list[Any]
    kwargs: dict[str, Any]
    expected: Any


Case = Asserts | Printing | Call


def read_case(text: str) -> Case:
    """Return the test that a text of `Prompt.tests` is.

    Raises:
        ValueError: it is a JSON object of another kind; the text says which fields there must be.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return Asserts(text)
    if not isinstance(fields, dict):
        return Asserts(text)
    if fields.keys() == {"input", "output"} and all(isinstance(value, str) for value in fields.values()):
        return Printing(fields["input"], fields["output"])
    if {"args", "expected"} <= fields.keys() <= {"args", "kwargs", "expected"}:
        kwargs = fields.get("kwargs", {})
        if isinstance(fields["args"], list) and isinstance(kwargs, dict):
            return Call(fields["args"], kwargs, fields["expected"])
    raise ValueError(
        f"a test with the fields {sorted(fields)} is none; write asserts, or JSON with `input` and `output` (texts), or "
        "with `args` (a list), `expected` and perhaps `kwargs` (an object)"
    )
