"""Runs one test of asserts in a process without the program; the functions that it calls are stand-ins.

A stand-in sends its arguments to the judge, which has the program called with them in the program's own process, and
returns what comes back. What cannot be carried, and what is no answer at all, ends the test for good: no `except` of
the test catches it, so it is never taken for a pass. A match of `re` comes as one that is true, and that ends the test
where it asks more of it.

A test may use what it imports, built-ins, modules of the standard library by their name (data sets count on imports of
the solution), and those functions of the program that the prompt names. A text that defines `check(candidate)` and never calls it is a test of
the HumanEval kind: it is called with the function under test; functions `test…()` that nobody calls are called too. Where the failure of an assert would be seen by nobody (threads,
classes of unittest) a test says nothing.
"""

import ast
import builtins
import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from fusion.verifiers.sandbox import values
from fusion.verifiers.sandbox.source import free_names

_SPAWNING = ("doctest", "threading", "_thread", "concurrent", "multiprocessing")
_RUNNERS = ("TextTestRunner", "TestProgram", "TestSuite", "TestResult", "FunctionTestCase")
_ELSEWHERE = frozenset((*_SPAWNING, *_RUNNERS))
"""Modules and classes that run code and keep what it raises to themselves. A `unittest.TestCase()`
whose assert methods a test calls is none of them."""

CALL, VERDICT = b"C", b"V"
"""How lines to the judge begin: one asks for a call, the last one says how it ended."""


class Lines(Protocol):
    """The channel to the judge."""

    def receive(self) -> Any: ...
    def send(self, tree: Any, prefix: bytes = b"") -> None: ...


class _EndOfTestError(BaseException):
    """The test cannot go on; `result` and `detail` say how it ended, whatever the test does with this."""


class Session:
    """The stand-ins of one test, what they have asked, and why it ended early, if it did."""

    def __init__(self, channel: Lines) -> None:
        self._channel = channel
        self.num_calls = 0
        self.raised: list[tuple[BaseException, dict[str, Any]]] = []
        """Exceptions of the program that were raised again in the test, with the program's report of each."""
        self.fault: tuple[str, str] | None = None
        self.catches = False
        """The test has something to catch exceptions with."""
        self.asks_types = False
        """The test says `type`, and so might tell a stand-in from what it stands for."""

    def stand_in(self, name: str) -> Callable[..., Any]:
        """Return the function that calls the program's function of this name."""

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        call.__name__ = call.__qualname__ = name
        return call

    def _call(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.fault:
            raise _EndOfTestError
        self.num_calls += 1
        encoder = values.Encoder(exact=True)
        try:
            request = {"name": name, "args": encoder.encode(args), "kwargs": encoder.encode(kwargs)}
        except values.UncarriedError as error:
            self.end("unverifiable", f"an argument of {name} is no plain value: {error}")
        self._channel.send(request, CALL)
        try:
            result, raised = self._read(name, self._channel.receive(), encoder.numbered)
        except Exception as error:  # Whatever a hostile answer makes the reading of it say.
            self.end("protocol_error", f"{name} gave no answer that can be read: {type(error).__name__}: {error}")
        if raised is not None:
            raise raised
        return result

    def _read(self, name: str, answer: dict[str, Any], arguments: list[Any]) -> tuple[Any, BaseException | None]:
        """Return what the program's function returned and raised, and do to the arguments what it did to them."""
        if "uncarried" in answer:
            self.end("unverifiable", f"{name} returned no plain value: {answer['uncarried']}")
        decoder = values.Decoder(list(arguments), match=lambda text: self._match(name, text))
        result = decoder.decode(answer["value"]) if "value" in answer else None
        error = None if "value" in answer else _exception(answer["raised"])
        if answer["contents"] is not None:
            for container, contents in zip(arguments, answer["contents"], strict=True):
                decoder.refill(container, contents)
        if error is not None:
            self.raised.append((error, answer["raised"]))
        if isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit):
            # It would end a loop of the test, `all(map(f, …))` for one, as if all had been looked at.
            said = f"{name} raised {type(error).__name__}"
            if self.catches:
                self.end("unverifiable", f"{said}, which the test may expect and cannot be raised in it")
            self.end("runtime_error", said)
        return result, error

    def _match(self, name: str, text: str) -> "_Match":
        said = f"{name} returned a match of re, and the test asks more than whether there is one"
        if self.asks_types:
            self.end("unverifiable", said)
        return _Match(text, lambda: self.end("unverifiable", said))

    def end(self, result: str, detail: str) -> NoReturn:
        """End the test for good, whatever it catches."""
        self.fault = self.fault or (result, detail)
        raise _EndOfTestError


class _Match:
    """Stands for a match of `re` that the program returned: true, not None, written as it was, equal to nothing else.

    A program could have returned True, or a text, as well, so no test believes it more for this. What else is asked of it, its
    groups or its class (`isinstance`), ends the test.
    """

    __slots__ = ("_end", "_text")

    def __init__(self, text: str, end: Callable[[], NoReturn]) -> None:
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_end", end)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return object.__getattribute__(self, "_text")

    def __eq__(self, other: object) -> bool:
        if type(other) is _Match and other is not self:  # Perhaps one match that was returned twice.
            _Match._ask(self)
        return other is self or NotImplemented

    def __hash__(self) -> int:
        return _Match._ask(self)

    def _ask(self, *args: Any) -> Any:
        object.__getattribute__(self, "_end")()

    __getattribute__ = __getitem__ = __copy__ = __deepcopy__ = __reduce_ex__ = __dir__ = _ask
    __setattr__ = __delattr__ = _ask


def run(channel: Lines, job: dict[str, Any]) -> None:
    """Run the test of a job, `{"text", "name", "functions"}`, and say how it ended."""
    session = Session(channel)
    verdict = _verdict(session, job)
    if session.fault:
        verdict = {"result": session.fault[0], "detail": session.fault[1]}
    elif verdict["result"] == "pass" and not session.num_calls:
        verdict = {"result": "unverifiable", "detail": "the test calls no function of the program"}
    channel.send(verdict, VERDICT)


def _verdict(session: Session, job: dict[str, Any]) -> dict[str, Any]:
    """Return how the text ended, without regard to faults of the session."""
    text, name = job["text"], job["name"]
    try:
        tree = ast.parse(text)
        code = compile(tree, "<test>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"result": "unverifiable", "detail": f"the test is no Python: {error}"}
    if elsewhere := _elsewhere(tree):
        return {"result": "unverifiable", "detail": f"with {elsewhere} a failed assert may not end the test"}
    session.catches = _catches(tree)
    session.asks_types = "type" in free_names(tree)
    scope = _scope(session, tree, name, job["functions"])
    try:
        exec(code, scope)
        for unused in _unused(tree):
            _call_unused(session, scope[unused.name], unused, name)
    except BaseException as error:
        return _judge(session, error, text)
    return {"result": "pass", "detail": ""}


def _judge(session: Session, error: BaseException, text: str) -> dict[str, Any]:
    """Return what it means that this left a test."""
    line = _line(error, text)
    for raised, report in session.raised:
        if raised is error:
            return {"result": "runtime_error", "detail": line, "error": report}
    broken = isinstance(
        error, NameError | ImportError | SyntaxError | MemoryError | SystemExit | KeyboardInterrupt | OSError
    )
    if broken or not session.num_calls:  # The program had no part in it.
        return {
            "result": "unverifiable",
            "detail": f"the test itself ends with {type(error).__name__}: {error}; {line}",
        }
    if isinstance(error, AssertionError):
        return {"result": "wrong_answer", "detail": line}
    # A value of the wrong type or length makes an assert end with TypeError, IndexError and others.
    return {"result": "wrong_answer", "detail": f"{type(error).__name__}: {error}; {line}"}


def _scope(session: Session, tree: ast.Module, name: str | None, functions: list[str]) -> dict[str, Any]:
    """Return the globals of a test: stand-ins and modules for the names that it reads and nothing defines.

    Only the function under test may have the name of a built-in: a program that defines `all` has no say in what a test means by it.
    """
    scope: dict[str, Any] = {"__name__": "test", "__builtins__": builtins}
    for free in free_names(tree):
        if free == name or (free in functions and not hasattr(builtins, free)):
            scope[free] = session.stand_in(free)
        elif free in sys.stdlib_module_names:
            with contextlib.suppress(ImportError):
                scope[free] = importlib.import_module(free)
    return scope


def _unused(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return `check(candidate)` and the functions `test…` that a text defines and leaves to the reader to call.

    What stands below `if __name__ == "__main__":` is not run here, so it is no call.
    """
    steps = [step for step in tree.body if not (isinstance(step, ast.If) and "__name__" in ast.dump(step.test))]
    used = {node.id for step in steps for node in ast.walk(step) if isinstance(node, ast.Name)}
    defined = [step for step in steps if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        step for step in defined if step.name not in used and (step.name == "check" or step.name.startswith("test"))
    ]


def _call_unused(
    session: Session, function: Callable[..., Any], written: ast.FunctionDef | ast.AsyncFunctionDef, name: str | None
) -> None:
    """Call a function that nobody calls, with the function under test where it has one parameter that needs a value."""
    needed = len(written.args.posonlyargs + written.args.args) - len(written.args.defaults)
    plain = isinstance(written, ast.FunctionDef) and not any(
        isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(written)
    )
    if not plain or needed > 1 or None in written.args.kw_defaults or (needed == 1 and not name):
        session.end("unverifiable", f"{written.name} of the test is called by nobody, and cannot be called as it is")
    function(*[session.stand_in(name)] * needed if name else ())


def _elsewhere(tree: ast.Module) -> str | None:
    """Return by what a test runs its asserts where their failure is seen by nobody, if by anything."""
    used = free_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                used.update(alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=module, names=names):
                used.update(((module or "").partition(".")[0], *(alias.name for alias in names)))
            case ast.ClassDef(name=name, body=body):
                methods = [step.name for step in body if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef)]
                if any(method.startswith(("test", "runTest")) for method in methods):
                    return f"the class {name}"  # Nobody runs it, or unittest does.
            case ast.Attribute(value=ast.Name(id="unittest"), attr="main"):
                used.add("TestProgram")
            case ast.Attribute(attr=name):
                used.add(name)
            case _:
                pass
    return min(used & _ELSEWHERE, default=None)


def _catches(tree: ast.Module) -> bool:
    """Tell whether a test may expect an exception: it has a `try`, a `with`, or says `assertRaises` of some kind."""
    for node in ast.walk(tree):
        match node:
            case ast.Try(handlers=[_, *_]) | ast.TryStar() | ast.With() | ast.AsyncWith():
                return True
            case ast.Attribute(attr=name) | ast.Name(id=name) if "raises" in name.lower():
                return True
            case _:
                pass
    return False


def _line(error: BaseException, text: str) -> str:
    """Return the line of the test that the error went through, for people."""
    found = ""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<test>":
            found = text.split("\n")[step.tb_lineno - 1].strip()
        step = step.tb_next
    return found[:200]


def _exception(raised: dict[str, Any]) -> BaseException:
    """Return an exception like the one that the program raised: of the same built-in type, or named after its own type."""
    kinds = [getattr(builtins, kind, None) for kind in raised["kinds"]]
    base = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException))
    kind = base if raised["kinds"][0] == base.__name__ else type(str(raised["kinds"][0]), (base,), {})
    args = (raised["text"],) if raised["args"] is None else values.Decoder().decode(raised["args"])
    if issubclass(base, BaseExceptionGroup):
        return kind(*args, [_exception(member) for member in raised["members"]])
    try:
        return kind(*args)
    except Exception:  # Some need arguments that could not be carried.
        error = kind.__new__(kind)
        error.args = tuple(args)
        return error
