"""`fuseline serve --swap`: find the running service and put new models into it.

The work is `serving.rollout`. Here: a service started on this machine leaves a note in the session directory of its
Ray, which is locked while it lives, so a note is never stale.
"""

import json
import logging
import os
import threading
from pathlib import Path

from cluster.session import living
from fusion.artifact import write_json
from fusion.errors import ClusterError, StageError
from jobs.entry import interrupts, listen, quiet
from serving.auth import load_keys
from serving.config import ServeConfig

NOTE = "service.json"
AUTH = "RAY_AUTH_MODE"


def announce(app: str, url: str) -> None:
    """Leave a note for `find`; nothing is left where the Ray is not our own."""
    import ray

    from cluster.connect import own_session

    session = own_session()
    if session is not None:
        address = ray.get_runtime_context().gcs_address
        note = {"app": app, "url": url, "address": address, "auth": os.environ.get(AUTH)}
        write_json(session / NOTE, note)  # as a whole: `find` may be reading


def find(app: str, below: Path = Path("/tmp")) -> dict[str, str]:
    """Return the note of the service named `app` on this machine.

    Raises:
        ClusterError: there is none, or several.
    """
    notes = [json.loads((session / NOTE).read_text()) for session in living(below) if (session / NOTE).exists()]
    mine = [note for note in notes if note["app"] == app]
    if not mine:
        raise ClusterError(f"no service {app!r} was started on this machine; name its Ray cluster with --address")
    if len(mine) > 1:
        known = ", ".join(f"{note['address']} ({note['url']})" for note in mine)
        raise ClusterError(f"{len(mine)} services {app!r} run on this machine; choose one with --address: {known}")
    return mine[0]


def swap(config: ServeConfig, *, address: str | None = None) -> None:
    """Put the models of `config` in the place of those that the service has; returns when they serve.

    Raises:
        InputError: a folder cannot be served, or the API keys cannot be read or are left out.
        ClusterError: no such service, or no room for the new models beside the old ones.
        StageError: the new models do not load or answer badly; the old ones are still served.
    """
    config.check_folders()
    load_keys(config.security)
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        note = find(config.app_name)
        address = note["address"]
        if note["auth"]:
            os.environ[AUTH] = note["auth"]  # read by Ray when it is imported
    from cluster.connect import connect, disconnect, nodes

    with interrupts() as stopped:
        connect(address)
        listen(stopped)
        try:
            on_gpu = config.runs_on_gpu(sum(node["GPU"] for node in nodes()))
            _swap(config, on_gpu=on_gpu, stopped=stopped)
        finally:
            disconnect()


def _swap(config: ServeConfig, *, on_gpu: bool, stopped: threading.Event) -> None:
    from serving import rollout

    def check() -> None:
        if stopped.is_set():
            raise StageError("interrupted")

    logging.getLogger("serving.readiness").setLevel(logging.ERROR)  # what it would say is in the error
    with quiet():
        before, after = rollout.swap(config, on_gpu=on_gpu, check=check, say=lambda line: print(line, flush=True))
    for name in {**before, **after}:
        old, new = (cards[name].revision if name in cards else "none" for cards in (before, after))
        print(f"{name}: {old}" + (" (kept)" if old == new else f" -> {new}"), flush=True)
