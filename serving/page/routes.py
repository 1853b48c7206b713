"""The routes of the page: its files, and the data about a run that two of its tabs show.

The files are read once, at the start, so that a request names a key of a dict and never a path. Everything
else that the page shows comes from the public routes. `/ui/data/*` is data about prompts: whoever checks
keys for `/v1/*` must check them for it; the files themselves are open.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from fusion.errors import FuselineError
from serving.body import field_path
from serving.errors import ApiError
from serving.page.rows import PromptDetail, RowPage, RowQuery, RowsQuery, detail, list_rows
from serving.page.runs import Run, RunView
from serving.schemas import RequestModel, ResponseModel

CSP = "default-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
SECURITY = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class RunAnswer(ResponseModel):
    """`GET /ui/data/run`."""

    run: RunView | None
    why: str | None
    """Why there is no run to show, and how to get one."""


class NoQuery(RequestModel):
    """A route without parameters."""


@dataclasses.dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, as it is sent."""

    content: bytes
    headers: dict[str, str]


def add_page(app: FastAPI, run: Path | None) -> None:
    """Add the page to an app.

    Args:
        run: folder with the results of the run to show (e.g. `runs/demo`); None shows how to get one.
    """
    _add_files(app, read_files(Path(__file__).parent / "ui"))
    _add_data(app, Run(run) if run is not None else None)


def read_files(folder: Path) -> dict[str, PageFile]:
    """Return the files of the page by name."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in MEDIA_TYPES:
            content = path.read_bytes()
            headers = {
                **SECURITY,
                "content-type": MEDIA_TYPES[path.suffix],
                "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
                # Always asked for again: a redeploy shows at once, and costs a 304 where nothing changed.
                "cache-control": "no-cache",
            }
            files[path.name] = PageFile(content, headers)
    return files


def _add_files(app: FastAPI, files: dict[str, PageFile]) -> None:
    @app.get("/ui", include_in_schema=False)
    @app.get("/ui/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(files["index.html"], request)

    @app.get("/ui/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise ApiError("not_found", "the page has no such file")
        return _answer(files[name], request)


def _answer(file: PageFile, request: Request) -> Response:
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.headers["etag"] in known:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)


def _add_data(app: FastAPI, run: Run | None) -> None:
    # Not in the OpenAPI document: these belong to the page and change with it. Plain functions, because they
    # read files; the framework gives each a thread.
    @app.get("/ui/data/run", include_in_schema=False)
    def run_data(request: Request) -> Response:
        _query(NoQuery, request)
        return _data(lambda: _view(run), run)

    @app.get("/ui/data/rows", include_in_schema=False)
    def rows(request: Request) -> Response:
        asked = _query(RowsQuery, request)
        return _data(lambda: list_rows(_needed(run), asked), run)

    @app.get("/ui/data/row", include_in_schema=False)
    def row(request: Request) -> Response:
        asked = _query(RowQuery, request)
        return _data(lambda: detail(_needed(run), asked), run)


def _view(run: Run | None) -> RunAnswer:
    if run is None:
        return RunAnswer(run=None, why="This service was started without a run. To see one: fuseline serve recipe.yaml")
    if not run.exists():
        return RunAnswer(run=None, why=f"The run {run.name} has not begun. To begin it: fuseline run recipe.yaml")
    return RunAnswer(run=run.view(), why=None)


def _needed(run: Run | None) -> Run:
    if run is None:
        raise ApiError("not_found", "this service was started without a run; start it with: fuseline serve recipe.yaml")
    return run


def _data(make: Callable[[], RunAnswer | RowPage | PromptDetail], run: Run | None) -> Response:
    try:
        answer = make()
    except FuselineError as error:
        assert run is not None
        raise ApiError("internal_error", run.problem(error)) from error
    headers = {**SECURITY, "cache-control": "no-store"}
    return JSONResponse(answer.model_dump(mode="json"), headers=headers)


def _query(model: type[Any], request: Request) -> Any:
    """Return the query parameters as a `model`; what does not fit is a 400 that names the parameter."""
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ApiError("invalid_request", "a query parameter is given twice")
    for name in given:
        if name not in model.model_fields:
            raise ApiError("unknown_field", f"unknown query parameter {name[:64]}", param=name[:64])
    try:
        return model.model_validate_strings(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        param = field_path(problem["loc"])
        raise ApiError("invalid_request", f"{param}: {problem['msg']}", param=param) from None
