"""Values as text: how arguments and results pass between a program, its tests and the judge, with exact types.

A value becomes a tree of JSON: None, True, texts, integers and finite floats as they are, everything else as
`[tag, …]`. Only exact built-in types and a few of the standard library are carried; an object of any other type, a
subclass of `int` among them, is not, so no code of a program comes along with its values. Of a match of `re`, which many
programs return where they could say True, a result tells only that it is one and how it is written, `["Match", text]`.

Mutable containers are numbered as they are first seen, `["list", 0, […]]`, and named again as `["same", 0]`. So cycles and
shared parts stay what they are, and what a call did to its arguments can be told (`contents`, `refill`). `plain=True` is the form
without numbers, in which shared parts are written out; the judge compares such trees without making objects of them.
"""

import collections
import datetime
import decimal
import fractions
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

Tree = Any
"""None, bool, int, float, str, or a list that begins with a tag."""

MAX_DEPTH = 100
MAX_CONTAINERS = 300_000
"""Containers in one value, counted as often as they are written out."""
_MAX_PLAIN_INT = 2**63


class UncarriedError(Exception):
    """A value that cannot pass; the text names its type."""


class MalformedError(Exception):
    """A text or tree that `Encoder` does not write."""


def dumps(tree: Tree) -> bytes:
    """Return a tree as one line without its end."""
    return json.dumps(tree, separators=(",", ":")).encode()


def loads(line: bytes) -> Tree:
    """Return the tree of a line.

    Raises:
        MalformedError: it is no JSON, or nested too deeply, or has absurd numbers.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"no JSON: {error}") from None


class Encoder:
    """Makes trees of values; the containers that it has numbered are in `numbered`."""

    def __init__(self, *, plain: bool = False, exact: bool = False, numbered: list[Any] | None = None) -> None:
        """Start with no container.

        Args:
            plain: write the form without numbers.
            exact: refuse a match, and a `defaultdict` with a factory that is none of a few built-in types, as arguments
                need it; a result comes without such a factory, and is what it is by its items.
            numbered: containers that have numbers already.
        """
        self.numbered: list[Any] = [] if numbered is None else numbered
        """Mutable containers by their number; kept alive, so that their identities stay theirs."""
        self._numbers = {id(container): number for number, container in enumerate(self.numbered)}
        self._plain = plain
        self._exact = exact
        self._depth = 0
        self._budget = MAX_CONTAINERS

    def encode(self, value: Any) -> Tree:
        """Return the tree of a value.

        Raises:
            UncarriedError: some part of it is of another type, or it is too deep or too large.
        """
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return value if value.isascii() else _encode_text(value)
        if kind is int:
            return value if -_MAX_PLAIN_INT <= value < _MAX_PLAIN_INT else ["int", hex(value)]
        if kind is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if kind in _SCALARS:
            return [kind.__name__, *_SCALARS[kind][0](value)]
        if kind is re.Match and not (self._plain or self._exact):
            return ["Match", repr(value)]
        self._depth += 1
        self._budget -= 1
        if self._depth > MAX_DEPTH or self._budget < 0:
            raise UncarriedError("a value that is nested too deeply or too large")
        tree = self._encode_container(value, kind)
        self._depth -= 1
        return tree

    def contents(self, value: Any) -> Tree:
        """Return the tree of what a mutable container holds, without its number."""
        kind = type(value)
        if kind is bytearray:
            return value.hex()
        if kind in _PAIRS:
            return [[self.encode(key), self.encode(item)] for key, item in value.items()]
        return [self.encode(item) for item in value]

    def _encode_container(self, value: Any, kind: type) -> Tree:
        if kind in _FROZEN:
            return [kind.__name__, [self.encode(item) for item in value]]
        if kind not in _MUTABLE:
            raise UncarriedError(kind.__name__)
        if self._plain:
            return [kind.__name__, None, self.contents(value)]
        number = self._numbers.get(id(value))
        if number is not None:
            return ["same", number]
        number = self._numbers[id(value)] = len(self.numbered)
        self.numbered.append(value)
        return [kind.__name__, number, *self._nature(value), self.contents(value)]

    def _nature(self, value: Any) -> tuple[Tree, ...]:
        """Return what a container is besides what it holds."""
        if type(value) is collections.deque and value.maxlen is not None:
            return (value.maxlen,)
        factory = value.default_factory if type(value) is collections.defaultdict else None
        if factory is None:
            return ()
        for name, kind in _FACTORIES.items():
            if factory is kind:
                return (name,)
        if self._exact:
            raise UncarriedError("defaultdict with a factory of its own")
        return ()


class Decoder:
    """Makes values of trees; the containers that it has made are in `numbered`, by their number."""

    def __init__(self, numbered: list[Any] | None = None, *, match: Callable[[str], Any] | None = None) -> None:
        """Start with the containers that have numbers already; `match` makes what stands for a match, where one may come."""
        self.numbered: list[Any] = [] if numbered is None else numbered
        self._match = match

    def decode(self, tree: Tree) -> Any:
        """Return the value of a tree.

        Raises:
            MalformedError: no encoder writes such a tree.
        """
        try:
            return self._decode(tree)
        except MalformedError:
            raise
        except Exception as error:  # Whatever a hostile tree makes the constructors say.
            raise MalformedError(f"no value: {type(error).__name__}: {error}") from None

    def refill(self, container: Any, contents: Tree) -> None:
        """Give a mutable container the contents that a tree tells; the tree is made by `Encoder.contents`."""
        kind = type(container)
        if kind is bytearray:
            container[:] = bytes.fromhex(contents)
        elif kind in _PAIRS:
            items = [(self.decode(key), self.decode(item)) for key, item in contents]
            container.clear()
            for key, item in items:
                container[key] = item
        else:
            items = [self.decode(item) for item in contents]
            container.clear()
            _FILL[kind](container, items)

    def _decode(self, tree: Tree) -> Any:
        if type(tree) is not list:
            if type(tree) is dict:
                raise MalformedError("an object where a value should be")
            return tree
        tag, *rest = tree
        if tag == "same":
            return self.numbered[rest[0]]
        if tag == "Match" and self._match is not None:
            return self._match(*map(str, rest))
        if tag in _SCALAR_TAGS:
            return _SCALAR_TAGS[tag](*rest)
        if tag in _FROZEN_TAGS:
            (items,) = rest
            return _FROZEN_TAGS[tag](map(self._decode, items))
        number, *nature, contents = rest
        container = _container(tag, *nature)
        if number is not None:
            if number != len(self.numbered):
                raise MalformedError(f"container {number} where {len(self.numbered)} should be")
            self.numbered.append(container)
        self.refill(container, contents)
        return container


def written(tree: Tree, longest: int = 100) -> str:
    """Return the beginning of a plain tree as Python writes the value; no object is made of it, and odd trees do no harm."""
    text = ""
    for piece in _pieces(tree, 20):
        text += piece
        if len(text) > longest:
            return f"{text[: longest - 3]}…"
    return text


def _pieces(tree: Tree, depth: int) -> Iterator[str]:
    """Yield the text of a tree, for as long as somebody wants it."""
    match tree:
        case ["set", *_, []]:
            yield "set()"
        case [str(tag), *_, list(items)] if tag in _BRACKETS and depth:
            opening, closing = _BRACKETS[tag]
            yield opening
            for place, item in enumerate(items):
                yield ", " if place else ""
                key, *rest = item if tag in _PAIR_TAGS and isinstance(item, list) and len(item) == 2 else [item]
                yield from _pieces(key, depth - 1)
                for value in rest:
                    yield ": "
                    yield from _pieces(value, depth - 1)
            yield ",)" if tag == "tuple" and len(items) == 1 else closing
        case ["int" | "float", str(text)]:
            yield text
        case ["bytes" | "bytearray" as tag, *_, str(text)]:
            yield f"{tag}.fromhex({text!r})"
        case ["range" | "Fraction" as tag, *parts]:
            yield f"{tag}({', '.join(map(str, filter(_plain, parts)))})"
        case [str(tag), *parts]:
            yield f"{tag}({', '.join(repr(part) if _plain(part) else '…' for part in parts)})"
        case _:
            yield repr(tree) if _plain(tree) else "…"


def _plain(tree: Tree) -> bool:
    return not isinstance(tree, list | dict)


def _container(tag: str, nature: Tree = None) -> Any:
    """Return an empty container."""
    if nature is None:
        return _MUTABLE_TAGS[tag]()
    if tag == "deque":
        return collections.deque(maxlen=nature)
    if tag == "defaultdict":
        return collections.defaultdict(_FACTORIES[nature])
    raise MalformedError(f"a {tag} has no {nature!r}")


def _encode_text(text: str) -> Tree:
    try:
        text.encode()
    except UnicodeEncodeError:  # Lone surrogates; two of them in a row would become one character in JSON.
        return ["str", text.encode("utf-8", "surrogatepass").hex()]
    return text


def _float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise MalformedError(f"{text!r} is no special float")
    return float(text)


def _real(tree: Tree) -> float:
    value = _float(tree[1]) if type(tree) is list else tree
    if type(value) is not float:
        raise MalformedError("a part of a complex number that is no float")
    return value


def _part(value: float) -> Tree:
    return value if math.isfinite(value) else ["float", repr(value)]


_SCALARS: dict[type, tuple[Callable[[Any], tuple], Callable[..., Any]]] = {
    complex: (lambda v: (_part(v.real), _part(v.imag)), lambda real, imag: complex(_real(real), _real(imag))),
    bytes: (lambda v: (v.hex(),), bytes.fromhex),
    range: (lambda v: tuple(map(hex, (v.start, v.stop, v.step))), lambda *parts: range(*(int(p, 16) for p in parts))),
    decimal.Decimal: (lambda v: (str(v),), decimal.Decimal),
    fractions.Fraction: (
        lambda v: (hex(v.numerator), hex(v.denominator)),
        lambda n, d: fractions.Fraction(int(n, 16), int(d, 16)),
    ),
    datetime.datetime: (lambda v: (_naive(v).isoformat(),), datetime.datetime.fromisoformat),
    datetime.date: (lambda v: (v.isoformat(),), datetime.date.fromisoformat),
    datetime.time: (lambda v: (_naive(v).isoformat(),), datetime.time.fromisoformat),
    datetime.timedelta: (lambda v: (v.days, v.seconds, v.microseconds), datetime.timedelta),
}
"""Type -> (its parts, the value of parts)."""


def _naive(value: Any) -> Any:
    if value.tzinfo is not None:
        raise UncarriedError(f"{type(value).__name__} with a time zone")
    return value


_FROZEN = (tuple, frozenset)
_PAIRS = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)
_MUTABLE = (list, set, bytearray, collections.deque, *_PAIRS)
_FILL: dict[type, Callable[[Any, list], None]] = {
    list: lambda container, items: container.extend(items),
    set: lambda container, items: container.update(items),
    collections.deque: lambda container, items: container.extend(items),
}
_SCALAR_TAGS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "float": _float,
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    **{kind.__name__: make for kind, (_, make) in _SCALARS.items()},
}
_FROZEN_TAGS: dict[str, Callable[..., Any]] = {kind.__name__: kind for kind in _FROZEN}
_MUTABLE_TAGS: dict[str, Callable[[], Any]] = {kind.__name__: kind for kind in _MUTABLE}
_PAIR_TAGS = frozenset(kind.__name__ for kind in _PAIRS)
_BRACKETS = {
    "list": ("[", "]"),
    "tuple": ("(", ")"),
    "set": ("{", "}"),
    "dict": ("{", "}"),
    "frozenset": ("frozenset({", "})"),
    "deque": ("deque([", "])"),
    **{tag: (f"{tag}({{", "})") for tag in _PAIR_TAGS - {"dict"}},
}
"""How Python writes what holds other values."""
_FACTORIES: dict[str, Callable[[], Any]] = {
    kind.__name__: kind for kind in (int, float, str, bool, list, dict, set, tuple)
}
"""Factories of a `defaultdict` that are carried; plain trees have none, and no length of a `deque` either."""
