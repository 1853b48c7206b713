"""Finds the program in a response and checks it before anything of it runs.

Parsing is done in a sandboxed process too, one that stays: some texts crash Python's parser, and a judge must outlive
every text. Nothing of the response is executed here.
"""

import ast
import builtins
import os.path
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_CODE = 256 * 1024
"""Characters of a program, and of all the blocks of a response that are parsed; models write a few thousand."""

_FENCE = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([^\n`]*+)")
"""Possessive: a line of ticks or tildes that is no fence is given up at once, not tried at every length."""
_CLOSING = re.compile(r"[\s.,;:!]*+")
"""What may follow the marks of a closing fence: the full stop of a sentence that the block is in."""
_CUTS = re.compile(r"[\s:,{}=]")
"""End of the language: ```` ```python:a.py ````, ```` ```python,editable ````, ```` ```python{1,3} ````."""
_PYTHON = re.compile(r"(?:i?py(?:thon)?[0-9.]*)?")
_MARKDOWN = ("markdown", "md")
_THOUGHT = re.compile(r"</think>(?!['\"\\{]|`(?!``))")
"""Where the thoughts end; one that quotes or ticks follow is in a program, or spoken of."""
_MARK = "\ufeff"
"""Byte order mark, with which some texts begin."""
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def serve(channel: Any) -> None:
    """Read responses, `{"text", "name"}` each, for as long as somebody sends them."""
    warnings.simplefilter("ignore")  # Those of the parser would be printed.
    while True:
        job = channel.receive()
        channel.send(read(job["text"], job["name"]))


def read(text: str, name: str | None) -> dict[str, Any]:
    """Return the program of a response, or why there is none.

    Args:
        text: what a model wrote, with or without fences.
        name: function that the program must define; None for a program that is only run. It is the last block that
            writes it out, or else the last that binds it in some other way.

    Returns:
        `{"code": text, "functions": names of its top-level functions}`, or `{"reason": code, "detail": text}` with
        `no_code` or `no_entry_point`.
    """
    try:
        return _program(text, name)
    except (RecursionError, MemoryError) as error:  # The next response is read by this process too.
        return {"reason": "no_code", "detail": f"reading it ends with {type(error).__name__}"}


def _program(text: str, name: str | None) -> dict[str, Any]:
    text = _answer(text.replace("\r\n", "\n"))
    blocks = fenced(text)
    parsed = _parsed(blocks or [text])
    if not blocks:
        parsed = [(code, tree) for code, tree in parsed if _does_something(tree)]
    if not parsed:
        return {"reason": "no_code", "detail": "no block of it, and not the whole, is Python that can be compiled"}
    if name is None:
        return _with_missing(parsed, max(reversed(range(len(parsed))), key=lambda index: len(parsed[index][0])))
    # A block that only uses the function binds its name too: `from solution import f`, `total = total(3)`.
    for names in (_written, _defined):
        for index in reversed(range(len(parsed))):
            if name in names(parsed[index][1]):
                return _with_missing(parsed, index)
    return {"reason": "no_entry_point", "detail": f"{name} is not defined"}


def _answer(text: str) -> str:
    """Return a response without the thoughts before it, in which fences are often left open."""
    ends = [match.end() for match in _THOUGHT.finditer(text)]
    return text[ends[-1] if ends else 0 :].removeprefix(_MARK)


class _Fence(NamedTuple):
    """A line that opens or closes a block."""

    indent: int
    marks: str
    info: str

    @property
    def language(self) -> str:
        """Example: `python` for "```python", "```python:a.py" and "```{.python}"."""
        return _CUTS.split(self.info.lstrip("{. "), maxsplit=1)[0].lower()

    def closes(self, opening: "_Fence") -> bool:
        """Tell the end of a block from a line in it; a docstring may have a block of its own, further in."""
        same = self.marks.startswith(opening.marks) and self.indent <= opening.indent + 3
        return same and _CLOSING.fullmatch(self.info) is not None


def fenced(text: str) -> list[str]:
    """Return the Python blocks of a text in their order; a last one that is never closed goes to the end.

    Those within a block of Markdown count too; those without a program in them do not.

    Example: the blocks of "Sure:\\n```python\\nx = 1\\n```" are ["x = 1"].
    """
    blocks: list[tuple[_Fence, list[str]]] = []
    opening: _Fence | None = None
    markdown: _Fence | None = None
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line)
        fence = _Fence(len(match[1].expandtabs(4)), match[2], match[3]) if match else None
        if opening is not None:
            if fence and fence.closes(opening):
                opening = None
            else:
                blocks[-1][1].append(line)
        elif fence is not None:
            if markdown and fence.closes(markdown):
                markdown = None
            elif fence.language in _MARKDOWN:
                markdown = fence
            else:
                opening = fence
                blocks.append((opening, []))
    codes = [_dedented(lines).removeprefix(_MARK) for fence, lines in blocks if _PYTHON.fullmatch(fence.language)]
    return [code for code in codes if code.strip()]


def _dedented(lines: list[str]) -> str:
    """Return the lines of a block without the indentation that all of them have; blank lines have any.

    `textwrap.dedent` would empty the blank lines, which in a text over several lines are part of the program.
    """
    indents = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    width = len(os.path.commonprefix(indents))
    return "\n".join(line[width:] for line in lines)


def _parsed(blocks: list[str]) -> list[tuple[str, ast.Module]]:
    """Return those blocks that are Python, with their trees; of more than `MAX_CODE` characters the last ones."""
    parsed: list[tuple[str, ast.Module]] = []
    left = MAX_CODE
    for code in reversed(blocks):
        if len(code) > left:
            continue
        left -= len(code)
        if (tree := _parse(code)) is not None:
            parsed.append((code, tree))
    return parsed[::-1]


def _parse(code: str) -> ast.Module | None:
    """Return the tree of a text that Python compiles; None for one that is nested too deeply, or no Python."""
    try:
        tree = ast.parse(code)
        compile(code, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return None
    return tree


def _does_something(tree: ast.Module) -> bool:
    """Tell a program from prose that happens to be Python, such as `Sorry, no`."""
    return any(not isinstance(step, ast.Expr) or isinstance(step.value, ast.Call) for step in tree.body)


def _with_missing(parsed: list[tuple[str, ast.Module]], index: int) -> dict[str, Any]:
    """Return a block as a program, after the statements of earlier blocks that define what it reads and lacks.

    Only imports, functions, classes and assigned values without calls are taken, each name where it was defined last, so that
    uses of a function and versions that were given up stay out.
    """
    code, tree = parsed[index]
    found: dict[str, tuple[int, int]] = {}
    for block, (_, earlier) in enumerate(parsed[:index]):
        for line, step in enumerate(earlier.body):
            found.update(dict.fromkeys(_offered(step), (block, line)))
    missing = _lacking(tree)
    taken: set[tuple[int, int]] = set()
    while missing:
        place = found.pop(missing.pop(), None)
        if place is not None and place not in taken:
            taken.add(place)
            missing |= _lacking(parsed[place[0]][1].body[place[1]])
    if taken:
        lines = [part for block, line in sorted(taken) for part in _lines(*parsed[block], line)]
        whole = "\n".join([*lines, code])
        joined = _parse(whole) if len(whole) <= MAX_CODE else None
        if joined is not None:  # A `from __future__` must come first, for one.
            code, tree = whole, joined
    return {"code": code, "functions": _functions(tree)}


def _offered(step: ast.stmt) -> list[str]:
    """Return the names that a statement defines for other blocks."""
    match step:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name.partition(".")[0] for alias in names]
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_plain(value):
            return [name]
        case _:
            return []


def _is_plain(value: ast.expr) -> bool:
    return isinstance(value, ast.Lambda) or not any(isinstance(node, ast.Call) for node in ast.walk(value))


def _lacking(tree: ast.AST) -> set[str]:
    return free_names(tree) - set(dir(builtins))


def free_names(tree: ast.AST) -> set[str]:
    """Return the names that are read somewhere in a tree and bound nowhere in it, built-in ones too."""
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.AsyncFunctionDef(name=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=renamed):
                bound.add(renamed or name.partition(".")[0])
            case _:
                pass
    return read - bound


def _lines(code: str, tree: ast.Module, index: int) -> list[str]:
    """Return the lines of a statement, with those of its decorators."""
    step = tree.body[index]
    above = step.decorator_list if isinstance(step, _SCOPES) else []
    first = min([step.lineno, *(node.lineno for node in above)])
    return code.split("\n")[first - 1 : step.end_lineno]


def _functions(tree: ast.Module) -> list[str]:
    return [node.name for node in _of_the_module(tree) if isinstance(node, ast.FunctionDef)]


def _written(tree: ast.Module) -> set[str]:
    """Return the names of the functions and classes that the top level of a program writes out."""
    names: set[str] = set()
    for node in _of_the_module(tree):
        if isinstance(node, _SCOPES):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def _defined(tree: ast.Module) -> set[str]:
    """Return every name that the top level of a program binds."""
    names: set[str] = set()
    for node in _of_the_module(tree):
        if isinstance(node, _SCOPES):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _of_the_module(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a program that are in no function or class, in their order, whatever they are nested in.

    Without recursion: a chain of `elif` is as deep as it is long. What a function or class is made of is left out.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, _SCOPES):
            waiting.extend(reversed(list(ast.iter_child_nodes(node))))
