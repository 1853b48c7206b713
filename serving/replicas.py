"""What the front knows of the replicas behind it: how many live, and whether any are starting.

Reads two things that Ray keeps to itself (decision 0007). `serve.status()` says the same, at 20 ms of processor time here and
in the controller each; what is asked here costs half a millisecond in each.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

PERIOD_S = 1.0

_STARTING = {"UPDATING", "UPSCALING", "UNHEALTHY"}
"""States of a deployment whose replicas are about to run."""


def living(handle: DeploymentHandle) -> int:
    """Return how many replicas take requests, as the router of the handle knows it; 0 before its first request."""
    router: Any = handle._router
    # Not its property without underscore, which makes what is missing, in the thread that asks.
    known = None if router is None else router._asyncio_router._request_router
    return 0 if known is None else len(known.curr_replicas)


def is_serving(app: str, deployment: str) -> bool:
    """Return whether a replica of the deployment takes requests."""
    found = serve.status().applications.get(app)
    own = found and found.deployments.get(deployment)
    return own is not None and "RUNNING" in set(own.replica_states)


async def watch(app: str, tell: Callable[[bool], object], *, period_s: float = PERIOD_S) -> None:
    """Tell whether replicas of the application are starting, again and again."""
    controller: Any = _get_global_client()
    answered = True
    while True:
        try:
            tell(await asyncio.to_thread(_is_starting, controller, app))
            answered = True
        except (RayError, RayServeException) as error:  # Ray restarts the controller; what was known last stays
            if answered:
                logger.warning("Serve's controller does not say what is starting: %s", type(error).__name__)
            answered = False
        except Exception:
            logger.exception("what is starting was not found out; asking again")
        await asyncio.sleep(period_s)


def _is_starting(controller: Any, app: str) -> bool:
    status = controller.get_serve_status(app)
    states = {deployment.status.value for deployment in status.deployment_statuses}
    return status.app_status.status.value == "DEPLOYING" or bool(states & _STARTING)
