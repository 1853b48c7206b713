"""The access log: one JSON line per request, with numbers and names, never text of a prompt and never a key."""

import datetime
import json
import logging
import sys
from logging.handlers import WatchedFileHandler
from typing import Any

from fusion.errors import InputError
from serving.visit import Visit


class AccessLog:
    """Writes visits to standard error, standard output or a file; or nowhere.

    Fields: time (UTC), request_id, method, route (the template), status, code, model, key (its name), ms, and
    where they apply ttft_ms, prompt_tokens, completion_tokens, scored_tokens, items, truncated, non_finite,
    replayed.
    """

    def __init__(self, target: str) -> None:
        """Open the log.

        Args:
            target: `off`, `stderr`, `stdout` or the path of a file, which is appended to and may be rotated.

        Raises:
            InputError: the file cannot be written.
        """
        self._handler = _handler(target)

    def write(self, visit: Visit) -> None:
        """Append one visit."""
        if self._handler is not None:
            line = json.dumps(fields(visit), separators=(",", ":"))
            self._handler.emit(logging.LogRecord("fuseline.access", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        if self._handler is not None:
            self._handler.close()


def fields(visit: Visit) -> dict[str, Any]:
    """Return the fields of one line; what is empty or zero is left out."""
    now = datetime.datetime.now(datetime.UTC)
    always = {
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": visit.request_id,
        "method": visit.method,
        "route": visit.route,
        "status": visit.status,
        "ms": round(visit.seconds * 1000, 1),
    }
    sometimes = {
        "code": visit.code,
        "model": visit.model,
        "key": visit.key.name if visit.key else "",
        "ttft_ms": None if visit.first_token_s is None else round(visit.first_token_s * 1000, 1),
        "prompt_tokens": visit.prompt_tokens,
        "completion_tokens": visit.completion_tokens,
        "scored_tokens": visit.scored_tokens,
        "items": visit.items,
        "truncated": visit.truncated,
        "non_finite": visit.non_finite,
        "replayed": visit.replayed,
    }
    return always | {name: value for name, value in sometimes.items() if value}


def _handler(target: str) -> logging.Handler | None:
    if target == "off":
        return None
    if target in ("stderr", "stdout"):
        return logging.StreamHandler(sys.stderr if target == "stderr" else sys.stdout)
    try:
        return WatchedFileHandler(target, encoding="utf-8")  # follows a rotation
    except OSError as error:
        raise InputError(f"cannot write the access log {target}: {error.strerror}") from None
