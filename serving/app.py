"""The HTTP front put together: routes, layers and the form of errors. A plain FastAPI app.

It knows its models as `ChatBackend` and `RewardBackend` only; Ray Serve is brought by `ingress`. The one
idea: every answer that is not 2xx goes through `ApiError`, whatever went wrong and wherever.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount, Route

from serving import openapi, routes, visit
from serving.auth import Kind
from serving.backends import ChatBackend, RewardBackend
from serving.config import Idempotency, Limits
from serving.edge import HEADER_BYTES, Edge, Observers
from serving.errors import ApiError
from serving.idempotency import PATHS, Answers, Replay
from serving.page import add_page

BACKSTOP_S = 5.0
"""Past the longest deadline, when a request is ended whatever it waits for: a client that reads too slowly."""


def build_app(
    *,
    chats: dict[str, ChatBackend],
    rewards: dict[str, RewardBackend],
    limits: Limits,
    not_ready: Callable[[], str | None],
    behind_proxy: bool = False,
    documented: bool = True,
    observers: Observers | None = None,
    header_bytes: int = HEADER_BYTES,
    idempotency: Idempotency | None = None,
    run: Path | None = None,
    seats: Callable[[], Mapping[Kind, int]] | None = None,
) -> FastAPI:
    """Return the app over these backends, by model name.

    Args:
        chats: chat models.
        rewards: reward models.
        limits: what one request may ask for.
        not_ready: returns None once every model is loaded and warm, before that what is awaited.
        behind_proxy: True where Ray Serve's proxy adds the `x-request-id` of every answer.
        documented: True shows the OpenAPI document at `/openapi.json`.
        observers: keys, metrics and access log; without, everybody may ask and numbers stay in memory.
        header_bytes: most bytes of request line and headers.
        idempotency: how long answers are kept for requests that are sent again.
        run: folder with the results of the run that the page shows.
        seats: gives the requests that are let in at once by kind, which the proxy is told with every answer.
    """
    shown_at = "/openapi.json" if documented else None
    app = FastAPI(title="fuseline", docs_url=None, redoc_url=None, openapi_url=shown_at)
    observers = observers or Observers()
    openapi.describe(app, [*chats, *rewards], keyed=observers.guard.has_keys, replayed=PATHS)
    # The router would answer a trailing slash with a redirect, which is no envelope.
    app.router.redirect_slashes = False
    models = routes.Models(chats, rewards)
    routes.add_models(app, models, not_ready)
    routes.add_chat(app, models, limits)
    routes.add_rewards(app, models, limits)
    add_page(app, run)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(
        Replay,
        answers=Answers(idempotency or Idempotency()),
        max_body_bytes=limits.rewards_body_bytes,
        deadline_s=limits.deadline_s,
    )
    app.add_middleware(  # last, so outermost
        Edge,
        observers=observers,
        routes=frozenset(route.path for route in app.routes if isinstance(route, Route | Mount)),
        max_in_flight=limits.max_in_flight,
        longest_s=max(limits.deadline_s, limits.chat_deadline_s) + BACKSTOP_S,
        header_bytes=header_bytes,
        adds_id=not behind_proxy,
        seats=seats,
    )
    return app


# ---- errors -----------------------------------------------------------------------------------


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    visit.note_error(error.code)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:128]}"
    if error.status_code == 405:
        answer = await _on_api_error(request, ApiError("method_not_allowed", f"{where} is not allowed"))
        answer.headers["allow"] = ", ".join(_allowed(request))
        return answer
    code = "not_found" if error.status_code == 404 else "invalid_request"
    message = f"{where} does not exist" if code == "not_found" else str(error.detail)
    return await _on_api_error(request, ApiError(code, message))


def _allowed(request: Request) -> list[str]:
    """Return the methods of the path; the router itself names those of the first route that has it."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})
