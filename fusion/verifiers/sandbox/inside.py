"""What runs in a sandboxed process beside the program: loads it, calls it with what comes in, writes out what it gives.

Nothing here is trusted by anybody: a program can replace all of it, and then says no more than it could have returned.
No expected value ever comes into a process that runs a program.

Lines on the channel: out `{"ready": true}` once it is restricted; in a job with its `role`; and then

- `program`: in `{"code"}`; the program runs as `__main__`; out `{"exit": code}` or an error at its end.
- `call`: in `{"code", "name", "args", "kwargs"}`; out `{"value"}`, `{"uncarried"}` or an error; plain trees.
- `serve`: in `{"code"}`; out `{"loaded": true}` or an error; then per call in `{"name", "args", "kwargs"}`, out
  `{"value", "contents"}`, `{"raised", "contents"}` or `{"uncarried"}`.
- `test` (`asserts.py`) and `read` (`source.py`): in these no program runs.

An error is `{"error": type, "text", "errno"}`.
"""

import _sitebuiltins
import atexit
import builtins
import contextlib
import gc
import io
import linecache
import os
import random
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Iterable
from typing import Any, NoReturn

from fusion.verifiers.sandbox import asserts, limits, source, values

CHANNEL_FD = 4
FILE = "program.py"
"""What a program takes for its file; there is none, but its lines can be looked up."""
MAX_TEXT = 500
"""Characters of an error's text that are passed on."""


class Channel:
    """Lines to and from the judge."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = bytearray()

    def receive(self) -> Any:
        """Return the tree of the next line; ends the process when there will be none."""
        while (end := self._read.find(b"\n")) < 0:
            data = os.read(self._descriptor, 1 << 16)
            if not data:
                os._exit(0)
            self._read += data
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return values.loads(line)

    def send(self, tree: Any, prefix: bytes = b"") -> None:
        """Send a tree as one line, after a prefix that the judge can tell lines by."""
        data = memoryview(prefix + values.dumps(tree) + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]


def run() -> NoReturn:
    """Do what the first line says and end this process."""
    channel = Channel(CHANNEL_FD)
    channel.send({"ready": True})
    sys.argv = [FILE]
    threading.stack_size(limits.THREAD_STACK_BYTES)
    random.seed(0)  # The same program gives the same verdict tomorrow.
    job = channel.receive()
    match job.pop("role"):
        case "program":
            _run_program(channel, job)
        case "call":
            channel.send(_call_once(job))
        case "serve":
            _serve(channel, job)
        case "test":
            asserts.run(channel, job)
        case "read":
            source.serve(channel)
    os._exit(0)


def _load(code: str, name: str) -> dict[str, Any]:
    """Run a program's text as a module of this name and return its globals."""
    module = types.ModuleType(name)
    module.__file__ = FILE
    sys.modules[name] = module
    linecache.cache[FILE] = (len(code), None, code.splitlines(keepends=True), FILE)  # No time: it is never read again.
    for leave in ("exit", "quit"):  # What `site` adds, which the zygote does without.
        setattr(builtins, leave, _sitebuiltins.Quitter(leave, "Ctrl-D (i.e. EOF)"))
    builtins.help = _sitebuiltins._Helper()  # type: ignore[attr-defined]
    exec(compile(code, FILE, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _run_program(channel: Channel, job: dict[str, Any]) -> NoReturn:
    """Run a program as Python would run a script, to the flush of its output."""
    code, report = 0, {"exit": 0}
    first = (sys.stdout, sys.stderr)
    try:
        _load(job["code"], "__main__")
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        report = {"exit": code}
    except BaseException as error:
        code, report = 1, describe(error)
        linecache.cache.pop(FILE, None)  # So that the traceback has no lines of the program, which it did not print.
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # Waits for threads, as the interpreter does at its end.
    atexit._run_exitfuncs()
    _flush_quietly(first)  # What was printed before `sys.stdout` was replaced comes first.
    flushed = [_flush(getattr(sys, name, None)) for name in ("stdout", "stderr")]
    sys.stdout, sys.stderr = first
    with contextlib.suppress(MemoryError):  # A program that has used up its memory has the first flush only.
        _flush_quietly(_open_writers())
        _forget("__main__")
    _flush_quietly(first)
    channel.send(report)
    os._exit(code & 0xFF if code or all(flushed) else 120)


def _flush(stream: Any) -> bool:
    """Flush a stream as the interpreter does at its end; False when that fails. One that is closed has nothing left."""
    try:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    except BaseException:  # It may be of a class of the program's own.
        traceback.print_exc()
        return False
    return True


def _open_writers() -> list[Any]:
    """Return all files that may hold text still; the collector, left to itself, may close what is beneath them first."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), io.TextIOWrapper | io.BufferedWriter)]


def _flush_quietly(streams: Iterable[Any]) -> None:
    """Flush streams that a program may have closed, detached or taken the descriptor of, which is no error at the end."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _forget(name: str) -> None:
    """Let go of a module and all that it holds, so that finalizers are called, as at the end of Python."""
    module = sys.modules.pop(name, None)
    if not isinstance(module, types.ModuleType):
        return  # The program has put something else there.
    held, module = weakref.ref(module), None
    gc.collect()  # Finalizers that this calls see the globals as they were.
    if (module := held()) is not None:
        for key in list(module.__dict__):
            module.__dict__[key] = None
        gc.collect()


def _call_once(job: dict[str, Any]) -> dict[str, Any]:
    """Load, call, and return the value as a plain tree."""
    try:
        module = _load(job["code"], "solution")
        decoder = values.Decoder()
        args, kwargs = decoder.decode(job["args"]), decoder.decode(job["kwargs"])
        result = module[job["name"]](*args, **kwargs)
    except BaseException as error:
        return describe(error)
    try:
        return {"value": values.Encoder(plain=True).encode(result)}
    except values.UncarriedError as error:
        return {"uncarried": str(error)}
    except BaseException as error:
        return describe(error)


def _serve(channel: Channel, job: dict[str, Any]) -> None:
    """Load, and then answer calls until nobody asks any more."""
    try:
        module = _load(job["code"], "solution")
    except BaseException as error:
        channel.send(describe(error))
        return
    channel.send({"loaded": True})
    while True:
        channel.send(_answer(module, channel.receive()))


def _answer(module: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Make one call; what it did to its arguments goes back with what it gave."""
    decoder = values.Decoder()
    args, kwargs = decoder.decode(job["args"]), decoder.decode(job["kwargs"])
    arguments = list(decoder.numbered)
    encoder = values.Encoder(numbered=list(arguments))
    try:
        try:
            result = module[job["name"]](*args, **kwargs)
            report: dict[str, Any] = {"value": encoder.encode(result)}
        except values.UncarriedError:
            raise
        except BaseException as error:
            report = {"raised": _raised(error)}
        report["contents"] = [encoder.contents(container) for container in arguments]
    except values.UncarriedError as error:
        return {"uncarried": str(error)}
    except BaseException as error:
        return {"raised": _raised(error), "contents": None}
    return report


def describe(error: BaseException) -> dict[str, Any]:
    """Return the report of an error that a program did not catch."""
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:  # An exception of the program's own, whose text is code of the program's own.
        text = ""
    number = error.errno if isinstance(error, OSError) else None
    return {"error": type(error).__name__, "text": text, "errno": number if isinstance(number, int) else None}


def _raised(error: BaseException) -> dict[str, Any]:
    """Return what a test needs to raise an exception of this kind again."""
    group = isinstance(error, BaseExceptionGroup)
    try:
        args = values.Encoder(plain=True).encode((error.message,) if group else tuple(error.args))
    except Exception:
        args = None
    raised = {"kinds": [kind.__name__ for kind in type(error).__mro__], "args": args, **describe(error)}
    return {**raised, "members": [_raised(member) for member in error.exceptions]} if group else raised
