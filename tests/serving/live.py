"""The app on a real socket: uvicorn in a thread, on a free port of the loopback, ended cleanly."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def serve(app: Any, *, parser: str = "auto") -> Iterator[str]:
    """Serve an ASGI app and give its base URL; `parser` is uvicorn's HTTP implementation (httptools or h11)."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=parser, lifespan="off", log_level="critical", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        ends_at = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < ends_at, "uvicorn did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "uvicorn did not end"
