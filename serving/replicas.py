"""What the front knows of the replicas behind it: how many live, and whether any are starting.

Asked of Serve's controller from time to time: 20 ms of processor time each in the front and in the controller.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

logger = logging.getLogger(__name__)

PERIOD_S = 2.0

_STARTING = {"STARTING", "UPDATING", "RECOVERING"}
"""States of a replica that will run."""


def running(app: str) -> tuple[dict[str, int], bool]:
    """Return how many replicas run, by deployment of the application, and whether any of it are starting."""
    found = serve.status().applications.get(app)
    states = {name: deployment.replica_states for name, deployment in found.deployments.items()} if found else {}
    counts = {name: sum(count for state, count in own.items() if state == "RUNNING") for name, own in states.items()}
    return counts, any(count and state in _STARTING for own in states.values() for state, count in own.items())


async def watch(app: str, tell: Callable[[Mapping[str, int], bool], None]) -> None:
    """Tell what is running, again and again; where the controller does not answer, what was known last stays."""
    answered = True
    while True:
        try:
            found = await asyncio.to_thread(running, app)
        except (RayError, RayServeException, TimeoutError) as error:  # Ray restarts the controller
            if answered:
                logger.warning("Serve's controller does not say which replicas run: %s", type(error).__name__)
            answered = False
        else:
            answered = True
            tell(*found)
        await asyncio.sleep(PERIOD_S)
