"""Compares what a program gave with what was expected, in the judge's process, where the program has no say.

Values are compared as plain trees (`values.py`), never as objects: type by type, so that True is not 1 and a tuple is no
list, with a tolerance between two floats only. No text of a program becomes a key that it could make collide.
"""

import json
import math
from typing import Any

from fusion.verifiers.sandbox.values import MalformedError, Tree

_ORDERED = ("list", "tuple", "deque", "OrderedDict")
_SETS = ("set", "frozenset")
_PAIRS = ("dict", "Counter", "defaultdict")


def same(expected: Tree, given: Tree, tolerance: float) -> bool:
    """Tell whether two plain trees are the same value.

    Args:
        expected: tree of the value that is right.
        given: tree that a program sent, of any shape.
        tolerance: floats agree when they are within this of each other, or within this share of the expected one; two
            NaN agree. Keys and members of sets must agree exactly.

    Raises:
        MalformedError: `given` is no tree.

    Example: `same(["list", None, [0.3]], ["list", None, [0.30000000000000004]], 1e-6)` is True.
    """
    try:
        return _same(expected, given, tolerance)
    except (RecursionError, TypeError, ValueError, IndexError) as error:
        raise MalformedError(f"no value: {error}") from None


def same_output(expected: str, printed: str, tolerance: float) -> bool:
    """Tell whether a program printed what it should.

    White space at the end of lines and empty lines at the end do not count. Where a word of the expected text is
    written as a float (`0.5`, `1e-3`), a number within the tolerance will do.
    """
    expected_lines, printed_lines = _lines(expected), _lines(printed)
    return len(expected_lines) == len(printed_lines) and all(
        a == b or _same_words(a.split(), b.split(), tolerance)
        for a, b in zip(expected_lines, printed_lines, strict=True)
    )


def _same(expected: Tree, given: Tree, tolerance: float) -> bool:
    if type(expected) is not type(given):
        return False
    if type(expected) is float:
        return _close(expected, given, tolerance)
    if type(expected) is not list:
        return expected == given
    if not given or len(expected) != len(given) or expected[0] != given[0]:
        return False
    tag, items, others = expected[0], expected[-1], given[-1]
    if tag in _ORDERED:
        # The pairs of an OrderedDict are lists without a tag; their items are compared one by one.
        flat, flat_others = (_flat(items), _flat(others)) if tag == "OrderedDict" else (items, others)
        return len(flat) == len(flat_others) and all(
            _same(a, b, tolerance) for a, b in zip(flat, flat_others, strict=True)
        )
    if tag in _SETS:
        return sorted(map(_spelling, items)) == sorted(map(_spelling, others))
    if tag in _PAIRS:
        values, other_values = ({_spelling(key): item for key, item in pairs} for pairs in (items, others))
        return values.keys() == other_values.keys() and all(
            _same(item, other_values[key], tolerance) for key, item in values.items()
        )
    if tag == "complex":
        return all(_same(a, b, tolerance) for a, b in zip(expected[1:], given[1:], strict=True))
    return expected == given


def _close(expected: float, given: float, tolerance: float) -> bool:
    return expected == given or abs(expected - given) <= tolerance * max(1.0, abs(expected))


def _flat(pairs: Any) -> list[Tree]:
    return [part for key, item in pairs for part in (key, item)]


def _spelling(tree: Tree) -> str:
    """Return the one text of a tree that can be a key; the members of a frozenset have no order."""
    if type(tree) is list and tree and tree[0] in (*_SETS, "tuple"):
        members = [_spelling(member) for member in tree[-1]]
        return json.dumps([tree[0], sorted(members) if tree[0] in _SETS else members])
    return json.dumps(tree)


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n")).rstrip("\n").split("\n")


def _same_words(expected: list[str], printed: list[str], tolerance: float) -> bool:
    return len(expected) == len(printed) and all(
        a == b or _same_number(a, b, tolerance) for a, b in zip(expected, printed, strict=True)
    )


def _same_number(expected: str, printed: str, tolerance: float) -> bool:
    if not any(sign in expected for sign in ".eE"):
        return False
    try:
        wanted, given = float(expected), float(printed)
    except ValueError:
        return False
    return math.isfinite(wanted) and _close(wanted, given, tolerance)
