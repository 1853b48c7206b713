"""One headless Chromium for the page tests, driven by playwright; without a Chromium they are skipped.

For this package and not for the whole session: playwright's synchronous API keeps an event loop in this thread, and other tests of the
same process call `asyncio.run`.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from ui.page_service import make_app, serving, write_run

NO_CHROMIUM = "no chromium on PATH, so the page is not tested; get one with: apt-get install chromium"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"]


@pytest.fixture(scope="package")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print(NO_CHROMIUM)
        pytest.skip(NO_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield started
        started.close()


@pytest.fixture(scope="package")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="package")
def service(run_folder):
    """URL of a service with two chat models, a reward model and a run."""
    with serving(make_app(run=run_folder)) as url:
        yield url


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    folder = os.environ.get("FUSELINE_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def visit(browser):
    """Open pages that must stay clean: no console message, no exception, no request to anywhere else, no dialog."""

    @contextmanager
    def opened(url: str, *, width=1280, height=900, theme="light", allowed=(), **context_options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, **context_options
        )
        page = context.new_page()
        page.set_default_timeout(8000)
        origin = "/".join(url.split("/")[:3])
        wrong = []

        def on_console(message):
            if message.type in ("error", "warning") and not any(part in message.text for part in allowed):
                wrong.append(f"console: {message.text}")

        def on_request(request):
            if not request.url.startswith((origin, "data:", "blob:" + origin)):
                wrong.append(f"request to {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
        page.on("request", on_request)
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        try:
            page.goto(url)
            page.locator("#state[data-state]").wait_for()
            yield page
        finally:
            context.close()
        assert wrong == []

    return opened
