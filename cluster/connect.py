"""Attach to Ray, and say within seconds whether a cluster can run a recipe.

A stage that asks for more than its cluster has would wait for ever: Ray queues what may fit one day. So
the demands of all stages are compared with the nodes before anything starts, and what is missing is named.
"""

import atexit
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ray

from cluster.session import SessionDirectory
from fusion.errors import ClusterError
from fusion.placement import Demand

log = logging.getLogger(__name__)

LOGICAL_CPUS = 8
"""Logical CPUs of a Ray started here. Every actor of Ray Data holds one for its life, so a machine with
two cores must offer more than two or pipelines hang (ray-project/ray#44687); threads are limited per process."""

_own: list[SessionDirectory] = []
"""Directory of the Ray that this process started; empty while attached elsewhere."""

_STARTED_IN = sys.path[0] if sys.path and sys.path[0] else str(Path.cwd())
"""The first place of the driver's import path; a driver may change its directory later."""

WORKER_ENV = {
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "VLLM_CONFIGURE_LOGGING": os.environ.get("VLLM_CONFIGURE_LOGGING", "1"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def connect(address: str | None = None, *, gpus: int | None = None) -> None:
    """Attach to a cluster, or start Ray on this machine.

    Args:
        address: `auto`, `host:port`, or None: the cluster of the Ray job that this runs in
            (`RAY_ADDRESS`) where there is one, else a Ray of our own on this machine.
        gpus: logical GPUs of a Ray started here; None lets Ray count the real ones.

    Raises:
        ClusterError: there is no cluster at `address`.
    """
    if ray.is_initialized():
        return
    os.environ.update({k: v for k, v in WORKER_ENV.items() if k.startswith("RAY_")})
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    runtime_env = {"env_vars": {**WORKER_ENV, "PYTHONPATH": _python_path()}}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address != "local":
        try:
            _knock(address)
            ray.init(address=address, runtime_env=runtime_env, **quiet)
        except (OSError, ValueError, RuntimeError, OverflowError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ClusterError(f"no Ray cluster at {address}: {reason}; start one with `ray start --head`") from None
        _quiet_ray_data()
        return
    _own.append(SessionDirectory())
    atexit.register(disconnect)
    ray.init(
        address="local",
        num_cpus=max(LOGICAL_CPUS, 2 * (os.cpu_count() or 1)),
        num_gpus=gpus,
        include_dashboard=True,  # without it Ray Train logs an error about once a second
        dashboard_host="127.0.0.1",
        _temp_dir=str(_own[-1].path),
        runtime_env=runtime_env,
        **quiet,
    )
    _quiet_ray_data()


def _knock(address: str, *, timeout_s: float = 5.0) -> None:
    """Raise OSError where nothing listens at `host:port`: Ray itself would go on trying for minutes, deaf to signals."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # else `auto`, where Ray looks at this machine only
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()


def _quiet_ray_data() -> None:
    """Keep Ray Data's start and end lines off the screen; its log files have them, and ours say more."""
    import ray.data  # noqa: F401 - importing it makes the handlers

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)


def disconnect() -> None:
    """Leave the cluster; a Ray that was started here is ended and its directory removed."""
    ray.shutdown()
    while _own:
        _own.pop().remove()


def _python_path() -> str:
    """Where the driver started, first, so that scorers beside a recipe are found on every worker."""
    return os.pathsep.join(p for p in (_STARTED_IN, os.environ.get("PYTHONPATH")) if p)


def own_session() -> Path | None:
    """Return the directory of the Ray that this process started, or None while attached elsewhere."""
    return _own[-1].path if _own else None


def nodes() -> list[dict[str, float]]:
    """Return CPU and GPU of every live node."""
    return [
        {name: float(node["Resources"].get(name, 0)) for name in ("CPU", "GPU")}
        for node in ray.nodes()
        if node["Alive"]
    ]


def check(demands: Mapping[str, Demand], available: Sequence[Mapping[str, float]], *, parallel: int = 1) -> None:
    """Raise ClusterError if a stage cannot ever be placed on these nodes.

    Args:
        demands: stage label -> what it asks for.
        available: resources of each node.
        parallel: number of stages that run at once; the hungriest are assumed to meet.
    """
    has_gpus = any(node.get("GPU", 0) > 0 for node in available)
    for label, demand in demands.items():
        missing = _unplaced([demand], available, has_gpus=has_gpus)
        if missing:
            raise ClusterError(f"{label} does not fit: {_explain(demand, missing, available, has_gpus=has_gpus)}")
    if parallel > 1 and demands:
        hungriest = sorted(demands.values(), key=lambda d: _size(d, has_gpus=has_gpus), reverse=True)[:parallel]
        missing = _unplaced(hungriest, available, has_gpus=has_gpus)
        if missing:
            raise ClusterError(
                f"{parallel} stages at once do not fit ({'; '.join(map(str, hungriest))}): this cluster has "
                f"{_total(available)}; lower placement.parallel_stages"
            )


def _unplaced(
    demands: Iterable[Demand], available: Sequence[Mapping[str, float]], *, has_gpus: bool
) -> list[dict[str, float]]:
    """Place actors first-fit on a copy of the nodes; return those that found no room."""
    free = [dict(node) for node in available]
    missing = []
    for demand in demands:
        actor = demand.per_actor(cluster_has_gpus=has_gpus)
        for _ in range(demand.count):
            node = next((n for n in free if all(n.get(r, 0) + 1e-9 >= x for r, x in actor.items())), None)
            if node is None:
                missing.append(actor)
                continue
            for name, amount in actor.items():
                node[name] -= amount
    return missing


def _size(demand: Demand, *, has_gpus: bool) -> tuple[float, float]:
    actor = demand.per_actor(cluster_has_gpus=has_gpus)
    return demand.count * actor.get("GPU", 0.0), demand.count * actor.get("CPU", 0.0)


def _explain(
    demand: Demand, missing: list[dict[str, float]], available: Sequence[Mapping[str, float]], *, has_gpus: bool
) -> str:
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in missing[0].items())
    return (
        f"it asks for {demand.count} actors with {wanted} each, {len(missing)} of them find no room; this cluster has "
        f"{_total(available)}; change placement in the recipe or add nodes"
        + ("" if has_gpus or demand.accelerator != "gpu" else " (no node has a GPU)")
    )


def _total(available: Sequence[Mapping[str, float]]) -> str:
    shown = [f"{n.get('CPU', 0):g} CPU + {n.get('GPU', 0):g} GPU" for n in available]
    return f"{len(available)} node(s): {', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''}"
