"""Put new models in the place of running ones, without a request that fails.

The only file that touches Ray Serve's controller: `serve.run` would restart every deployment, also the models that
stay. The one idea, in three steps: the new models start beside the old ones and are asked until they answer well;
then a new front, bound to them, takes the place of the old one, which ends the requests that it has begun with the
old models; only then do these go. Until the second step the old application is as it was, and a failure leaves it so.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray import serve
from ray.serve._private.build_app import build_app
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.config import DeploymentConfig, ReplicaConfig
from ray.serve._private.utils import get_random_string
from ray.serve.context import _get_global_client
from ray.serve.deployment import Application
from ray.serve.generated import serve_pb2
from ray.serve.schema import LoggingConfig

from fusion.errors import BusyError, ClusterError, InputError, StageError
from serving.config import ServeConfig
from serving.ingress import Models, build_application
from serving.layout import FRONT
from serving.schemas import ModelCard

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
"""Errors and warnings only: Serve's access log would repeat every request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Deployment:
    """What Serve's controller is told of a deployment. With an equal version, no replica restarts."""

    name: str
    options: DeploymentConfig
    replica: ReplicaConfig
    """Class, arguments and resources of a replica."""
    job: str

    def message(self) -> bytes:
        """Return it in the controller's form."""
        protocol: Any = serve_pb2  # made at run time, unknown to the type checker
        front = {"ingress": True, "route_prefix": "/"} if self.name == FRONT else {}
        return protocol.DeploymentArgs(
            deployment_name=self.name,
            deployment_config=self.options.to_proto_bytes(),
            replica_config=self.replica.to_proto_bytes(),
            deployer_job_id=self.job,
            **front,
        ).SerializeToString()

    def scaled_as(self, wanted: "Deployment") -> "Deployment":
        """Return it with the number of replicas that `wanted` has, and its own version."""
        options = wanted.options.model_copy(update={"version": self.options.version})
        return dataclasses.replace(self, options=options)


Deployments = dict[str, Deployment]
"""An application, by deployment name."""


def swap(
    config: ServeConfig, *, on_gpu: bool, check: Callable[[], None], say: Callable[[str], None]
) -> tuple[dict[str, ModelCard], dict[str, ModelCard]]:
    """Serve `config` in place of what the application serves now; return the cards before and after.

    Args:
        config: the new models; its address is not read, a running service keeps its own.
        on_gpu: where models run.
        check: called while waiting; raises to give up, e.g. after Ctrl-C.
        say: told what is waited for.

    Raises:
        InputError: a folder cannot be served, or the service has keys and `config` names none.
        ClusterError: no such application here, or no room for the new models beside the old ones.
        BusyError: another swap of this application is under way.
        StageError: the new models do not load, do not answer or answer badly; the old ones are still served.
    """
    with _alone(config.app_name):
        return _swap(config, on_gpu=on_gpu, check=check, say=say)


def _swap(
    config: ServeConfig, *, on_gpu: bool, check: Callable[[], None], say: Callable[[str], None]
) -> tuple[dict[str, ModelCard], dict[str, ModelCard]]:
    client = _client()
    app, patience_s = config.app_name, config.ready_timeout_s
    old = _running(client, app)
    handle = serve.get_app_handle(app)
    before = handle.cards.remote().result(timeout_s=30)
    if handle.asks_for_keys.remote().result(timeout_s=30) and not config.security.has_keys:
        # Where it listens stays as it is, so it would be open to whoever reaches that address.
        raise InputError("the running service asks for keys, and these files name none; give --keys-file or --keys-env")
    application = build_application(config, on_gpu=on_gpu)
    new, models = _wanted(application, app)
    for name in (old.keys() & new.keys()) - {FRONT}:
        new[name] = old[name].scaled_as(new[name])
    added = [name for name in new if name not in old]
    _check_room(new[name] for name in added)
    try:
        if added:
            say(f"starting {', '.join(added)} beside the models in service")
            _deploy(client, app, {**old, **{name: new[name] for name in added}})
            _settle(client, app, {n: new[n] for n in added}, patience_s=patience_s, check=check)
        asyncio.run(_warm(models, config.ready_timeout_s, check))
        say("the new models answer; taking requests to them")
        _deploy(client, app, {**old, **new})
        # Its old replicas are gone once the requests that they had begun are answered.
        drain_s = config.limits.chat_deadline_s + 30
        _settle(client, app, {FRONT: new[FRONT]}, patience_s=patience_s + drain_s, check=check)
    except Overtaken:
        raise  # what is there now is somebody else's, and putting the old models back would undo it
    except BaseException as error:
        _deploy(client, app, old)
        if isinstance(error, StageError):
            raise StageError(f"{error}; the old models are still served") from None
        raise
    gone = [name for name in old if name not in new]
    if gone:
        say(f"stopping {', '.join(gone)}")
    _deploy(client, app, new)
    _settle(client, app, new, patience_s=patience_s, check=check)
    return before, models.cards


class Overtaken(StageError):
    """Somebody has deployed the application meanwhile."""


@contextlib.contextmanager
def _alone(app: str) -> Iterator[None]:
    """Be the only swap of an application: two at once would each take the other's models away.

    The name of an actor is taken meanwhile, which ends with the process that made it.

    Raises:
        BusyError: another one is under way.
    """

    class Turn:  # in here, so that its process need not import this module, whose imports take seconds
        pass

    name = f"fuseline-swap-{app}"
    try:
        turn: Any = ray.remote(num_cpus=0)(Turn).options(name=name, namespace="serve").remote()
    except ValueError:
        raise BusyError(f"another swap of {app!r} is under way; start this one when it has ended") from None
    try:
        yield
    finally:
        ray.kill(turn)


def _client() -> ServeControllerClient:
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise ClusterError("Ray Serve does not run on this cluster; start the service first: fuseline serve")
    return client


def _running(client: ServeControllerClient, app: str) -> Deployments:
    """Return the application as it runs, in the form in which it can be deployed again without any restart."""
    applications = serve.status().applications
    if app not in applications or FRONT not in applications[app].deployments:
        there = ", ".join(applications) or "none"
        raise ClusterError(f"this cluster has no service {app!r}; its applications: {there}")
    found: Deployments = {}
    for name in applications[app].deployments:
        info, _ = client.get_deployment_info(name, app)
        options = info.deployment_config.model_copy(update={"version": info.version})
        found[name] = Deployment(name, options, info.replica_config, info.deployer_job_id)
    return found


def _wanted(application: Application, app: str) -> tuple[Deployments, Models]:
    """Return what an application asks Serve for, and its models behind handles of this process."""
    context = ray.get_runtime_context()
    built = build_app(application, name=app, route_prefix="/", default_runtime_env=context.runtime_env)
    wanted: Deployments = {}
    for deployment in built.deployments:
        options = deployment.options(logging_config=QUIET)._deployment_config
        options = options.model_copy(update={"version": get_random_string()})
        wanted[deployment.name] = Deployment(deployment.name, options, deployment._replica_config, context.get_job_id())
    (front,) = (deployment for deployment in built.deployments if deployment.name == FRONT)
    arguments: Any = front.init_args
    config, cards, chats, rewards, on_gpu, _ = arguments
    return wanted, Models(config, cards, chats, rewards, on_gpu=on_gpu)


def _deploy(client: ServeControllerClient, app: str, deployments: Deployments) -> None:
    """Make `deployments` the whole application."""
    protocol: Any = serve_pb2
    messages = [deployment.message() for deployment in deployments.values()]
    application = protocol.ApplicationArgs().SerializeToString()
    ray.get(client._controller.deploy_applications.remote({app: messages}, {app: application}))


def _settle(
    client: ServeControllerClient, app: str, wanted: Deployments, *, patience_s: float, check: Callable[[], None]
) -> None:
    """Return once these deployments run at the versions asked for, and nothing else of them is left.

    Raises:
        StageError: one of them failed, or it took longer than `patience_s`.
    """
    ends_at = time.monotonic() + patience_s
    waiting = set(wanted)
    while waiting:
        check()
        if time.monotonic() > ends_at:
            raise StageError(f"{', '.join(sorted(waiting))} not in service after {patience_s:g} s")
        # In this order: with a status from before the version, the old replicas would pass for the new ones.
        begun = {name for name in waiting if _version(client, app, name) == wanted[name].options.version}
        status = serve.status().applications.get(app)
        for name in sorted(begun):
            deployment = status and status.deployments.get(name)
            if deployment is None:  # its version was there a moment ago
                raise Overtaken(f"{name} is gone: somebody has deployed {app!r} meanwhile, which is left as it is now")
            if deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise StageError(f"{name} could not be deployed: {reason(deployment.message)}")
            if deployment.status == "HEALTHY" and set(deployment.replica_states) == {"RUNNING"}:
                waiting.discard(name)
        time.sleep(0.2)


def _version(client: ServeControllerClient, app: str, name: str) -> str | None:
    try:
        return client.get_deployment_info(name, app)[0].version
    except KeyError:
        return None  # the controller has not begun with it


async def _warm(models: Models, patience_s: float, check: Callable[[], None]) -> None:
    """Return once every model has answered well.

    Raises:
        StageError: a model is refused, e.g. for its canary, or did not answer in time.
    """
    readiness = models.readiness()
    readiness.start()
    ends_at = time.monotonic() + patience_s
    try:
        while readiness.not_ready() is not None:
            check()
            if readiness.refused is not None or time.monotonic() > ends_at:
                raise StageError(f"the new models are not ready: {readiness.not_ready()}")
            await asyncio.sleep(0.1)
    finally:
        await readiness.stop()


def _check_room(added: Iterable[Deployment]) -> None:
    """Raise ClusterError if the new models do not fit beside the old ones."""
    needed = {"CPU": 0.0, "GPU": 0.0}
    for deployment in added:
        scale = deployment.options.autoscaling_config
        count = scale.min_replicas if scale else (deployment.options.num_replicas or 1)
        bundles = deployment.replica.placement_group_bundles or [deployment.replica.resource_dict]
        for name in needed:
            needed[name] += count * sum(bundle.get(name, 0.0) for bundle in bundles)
    free = ray.available_resources()
    for name, amount in needed.items():
        if amount > free.get(name, 0.0) + 1e-6:
            raise ClusterError(
                f"the new models need {amount:g} {name} beside the old ones, and {free.get(name, 0.0):g} are free; add "
                "nodes, or stop the service and start it anew"
            )


def reason(message: str) -> str:
    """Return the line of a Serve status that a person can use: the last one of the traceback in it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no reason given"])[-1][:500]
