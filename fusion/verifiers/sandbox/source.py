"""Finds the program in a response and checks it before anything of it runs.

Parsing is done in a sandboxed process too, one that stays: some texts crash Python's parser, and a judge must outlive
every text. Nothing of the response is executed here.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

MAX_CODE = 256 * 1024
"""Characters of a program; models write a few thousand."""

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\n`]*)")
_PYTHON = re.compile(r"(?:py(?:thon)?[0-9.]*)?")


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
    text = text.replace("\r\n", "\n")
    blocks = fenced(text)
    parsed = [(code, tree) for code in blocks or [text] if (tree := _parse(code)) is not None]
    if not blocks:
        parsed = [(code, tree) for code, tree in parsed if _does_something(tree)]
    if not parsed:
        return {"reason": "no_code", "detail": "no block of it, and not the whole, is Python that can be compiled"}
    if name is None:
        code, tree = max(reversed(parsed), key=lambda pair: len(pair[0]))
        return {"code": code, "functions": _functions(tree)}
    # A block that only uses the function binds its name too: `from solution import f`, `total = total(3)`.
    for names in (_written, _defined):
        for code, tree in reversed(parsed):
            if name in names(tree):
                return {"code": code, "functions": _functions(tree)}
    return {"reason": "no_entry_point", "detail": f"{name} is not defined"}


def fenced(text: str) -> list[str]:
    """Return the Python blocks of a text in their order; a last one that is never closed goes to the end.

    Example: the blocks of "Sure:\\n```python\\nx = 1\\n```" are ["x = 1"].
    """
    blocks: list[str] = []
    lines: list[str] | None = None
    fence, language = "", ""
    for line in text.split("\n"):
        match = _FENCE.fullmatch(line)
        if lines is None:
            if match:
                lines, fence, language = [], match[1], match[2].strip().partition(" ")[0].lower()
        elif match and match[1].startswith(fence) and not match[2].strip():
            if _PYTHON.fullmatch(language):
                blocks.append(textwrap.dedent("\n".join(lines)))
            lines = None
        else:
            lines.append(line)
    if lines is not None and _PYTHON.fullmatch(language):
        blocks.append(textwrap.dedent("\n".join(lines)))
    return blocks


def _parse(code: str) -> ast.Module | None:
    """Return the tree of a text that Python compiles; None for one that is too long, nested too deeply, or no Python."""
    if len(code) > MAX_CODE:
        return None
    try:
        tree = ast.parse(code)
        compile(code, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return None
    return tree


def _does_something(tree: ast.Module) -> bool:
    """Tell a program from prose that happens to be Python, such as `Sorry, no`."""
    return any(not isinstance(step, ast.Expr) or isinstance(step.value, ast.Call) for step in tree.body)


def _functions(tree: ast.Module) -> list[str]:
    return [step.name for step in _top_level(tree.body) if isinstance(step, ast.FunctionDef)]


def _written(tree: ast.Module) -> set[str]:
    """Return the names of the functions and classes that the top level of a program writes out."""
    names: set[str] = set()
    for step in _top_level(tree.body):
        if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(step.name)
        elif isinstance(step, ast.Assign | ast.AnnAssign) and isinstance(step.value, ast.Lambda):
            targets = step.targets if isinstance(step, ast.Assign) else [step.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def _defined(tree: ast.Module) -> set[str]:
    """Return every name that the top level of a program binds."""
    names: set[str] = set()
    for step in _top_level(tree.body):
        if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(step.name)
        elif isinstance(step, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in step.names)
        else:
            names.update(n.id for n in ast.walk(step) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return names


def _top_level(steps: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those within top-level `if`, `try` and `with` too."""
    for step in steps:
        yield step
        for field in ("body", "orelse", "finalbody"):
            if isinstance(step, ast.If | ast.Try | ast.With):
                yield from _top_level(getattr(step, field, []))
