"""The errors of the HTTP service: one class, one envelope, one table of codes.

Not the errors of the command line (those are `fusion.errors`): these become the OpenAI envelope
`{"error": {"message", "type", "param", "code"}}` with a status. Messages name fields and limits, never
the text of a prompt.
"""

import math
import traceback
from typing import Any

RETRY_AFTER_S = 1

STATUS = {
    "invalid_json": 400,
    "invalid_request": 400,
    "unknown_field": 400,
    "unsupported_parameter": 400,
    "context_length_exceeded": 400,
    "empty_response": 400,
    "invalid_roles": 400,
    "missing_api_key": 401,
    "invalid_api_key": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "deadline_exceeded": 408,
    "idempotency_conflict": 409,
    "body_too_large": 413,
    "too_many_items": 413,
    "unsupported_media_type": 415,
    "overloaded": 429,
    "rate_limited": 429,
    "internal_error": 500,
    "non_finite_score": 500,
    "backend_error": 503,
    "backend_unavailable": 503,
    "not_ready": 503,
}
"""code -> status; a code that is not here does not exist."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that ends with the envelope. `param` names the field at fault, e.g. `input[1].prompt`."""

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None):
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.param = param
        self.status = STATUS[code]
        # 429 and 503 always say when to come back.
        self.retry_after_s = RETRY_AFTER_S if retry_after_s is None and self.status in (429, 503) else retry_after_s

    @property
    def kind(self) -> str:
        return error_type(self.status)

    def body(self) -> dict[str, Any]:
        """Return the OpenAI envelope."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after_s is None else {"retry-after": str(math.ceil(self.retry_after_s))}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def trace(error: BaseException) -> str:
    """Return where an unexpected error came from, for the log: its class and frames, without its text.

    The text of somebody else's error may quote what it failed on, and that may be a prompt.
    """
    return "".join([type(error).__name__, "\n", *traceback.format_tb(error.__traceback__)]).rstrip()


def error_type(status: int) -> str:
    """Return the `type` of the OpenAI envelope for a status."""
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
