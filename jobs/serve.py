"""Serve models: `python -m jobs.serve --chat NAME=FOLDER --reward NAME=FOLDER`, or `fuseline serve FILE`.

Starts Ray on this machine (or attaches to a cluster), deploys the application of `serving`, waits until every
model has answered a warm-up request, and prints how to call it. Ctrl-C or SIGTERM takes the application down
again, and a Ray that was started here with it. What is served is said by `serve_config`; a running service gets
new models by `swap`.
"""

import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from fusion.errors import InputError, StageError
from fusion.placement import Accelerator
from jobs.entry import interrupts, listen, quiet, run_command
from jobs.swap import announce
from serving.auth import load_keys
from serving.config import ChatModel, EnginePlacement, RewardModel, Security, ServeConfig

log = logging.getLogger(__name__)

TAKE_DOWN_S = 20.0
"""How long taking an application down is watched; the cluster ends what takes longer by itself."""

Pair = Annotated[list[str] | None, typer.Option(metavar="NAME=FOLDER")]
cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def serve(config: ServeConfig, *, block: bool = True, address: str | None = None) -> str:
    """Deploy `config` and return its base URL once every model answers.

    Args:
        config: models, address and limits.
        block: stay until Ctrl-C or SIGTERM, then take the application down.
        address: Ray cluster to attach to; None means the cluster of this Ray job where there is one, else a Ray
            of our own on this machine.

    Raises:
        ModelError: a model folder cannot be served.
        InputError: the port is taken by something else, or the API keys cannot be read.
        ClusterError: no such cluster, or it lacks the GPUs that were asked for.
        StageError: the application did not become ready in time.
    """
    config.check_folders()
    load_keys(config.security)
    import ray  # takes seconds; bad folders and keys need none

    from cluster.connect import connect, nodes

    own_ray = address is None and "RAY_ADDRESS" not in os.environ and not ray.is_initialized()
    if own_ray:
        check_port(config)  # on a cluster, Serve may be running there already and is shared
    with interrupts() as stopped:
        connect(address)
        listen(stopped)  # again: Ray's start has put its own SIGTERM handler, which prints a stack trace
        try:
            on_gpu = config.runs_on_gpu(sum(node["GPU"] for node in nodes()))
            url = _deploy(config, on_gpu=on_gpu, stopped=stopped)
            announce(config.app_name, url)
            if block:
                print(f"Ray cluster: {ray.get_runtime_context().gcs_address}")
                print("\n".join(welcome(config, url)), flush=True)
                stopped.wait()
                print("stopping", flush=True)
        except BaseException:
            _end(config, own_ray=own_ray)
            raise
        if block:
            _end(config, own_ray=own_ray)
    return url


def stop(config: ServeConfig) -> None:
    """Take down what `serve(..., block=False)` deployed, and the Ray that it started."""
    _end(config, own_ray=False)


def _end(config: ServeConfig, *, own_ray: bool) -> None:
    from cluster.connect import disconnect

    if not own_ray:  # a Ray of our own takes the application with it
        _take_down(config)
    disconnect()


def _deploy(config: ServeConfig, *, on_gpu: bool, stopped: threading.Event) -> str:
    from ray import serve as ray_serve

    from serving.ingress import build_application
    from serving.proxy import environment
    from serving.rollout import QUIET

    started = time.monotonic()
    with quiet():
        application = build_application(config, on_gpu=on_gpu)
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host, "port": config.port},
        logging_config=QUIET,
        controller_options={"runtime_env": {"env_vars": environment(config.limits)}},  # its proxies inherit it
    )
    target = ray_serve.RunTarget(application, name=config.app_name, route_prefix="/", logging_config=QUIET)
    # Not waiting here, so that an interrupt is noticed while models load.
    ray_serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    url = f"http://{_authority(config)}"
    _await_ready(config, url, stopped=stopped)
    log.info("ready after %.1f s", time.monotonic() - started)
    return url


def _await_ready(config: ServeConfig, url: str, *, stopped: threading.Event) -> None:
    """Return once `/readyz` says so; raise StageError when the deployment fails, a model is refused, or time is up."""
    from ray import serve as ray_serve

    from serving.rollout import reason

    ends_at = time.monotonic() + config.ready_timeout_s
    while time.monotonic() < ends_at:
        if stopped.wait(0.25):
            raise KeyboardInterrupt
        application = ray_serve.status().applications[config.app_name]
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise StageError(f"the models could not be deployed: {reason(application.message)}")
        if application.status == "RUNNING":
            if _is_ready(url):
                return
            front = ray_serve.get_app_handle(config.app_name)
            if refused := front.refused.remote().result(timeout_s=30):
                raise StageError(f"the service cannot become ready: {refused}")
    raise StageError(f"the models were not ready after {config.ready_timeout_s:g} s; see the logs of Ray Serve")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _take_down(config: ServeConfig) -> None:
    """Delete the application, and Serve itself where nothing else runs on it."""
    import ray
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    if not ray.is_initialized():
        return
    try:
        # Not waiting for every stream to end: the front gives them as long as a chat answer may take.
        ray_serve.delete(config.app_name, _blocking=False)
        ends_at = time.monotonic() + TAKE_DOWN_S
        while config.app_name in ray_serve.status().applications and time.monotonic() < ends_at:
            time.sleep(0.2)
        if not ray_serve.status().applications:
            ray_serve.shutdown()
    except RayServeException as error:  # it never came up
        log.debug("nothing to take down: %s", error)


def check_port(config: ServeConfig) -> None:
    """Raise InputError, with the option to change, where the service could not listen."""
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        # As Ray's proxy does: IPv6 only where the host has nothing else.
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do, so that a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise InputError(
            f"cannot listen on {_authority(config)}: {error.strerror}; choose another one with {option}"
        ) from None


def _authority(config: ServeConfig) -> str:
    """Return host and port as a URL has them."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{host}:{config.port}"


def welcome(config: ServeConfig, url: str) -> list[str]:
    """Return what a person is told once the service is ready: where it is, where it writes, how to call it."""
    lines = [
        f"serving at {url} (models: {', '.join([*config.chat, *config.rewards])}); Ctrl-C ends it",
        f"page: {url}/ui",
    ]
    if (log := config.observability.access_log) not in ("off", "stderr", "stdout"):
        lines.append(f"access log: {log}")
    keyed = config.security.has_keys
    for name in list(config.chat)[:1]:
        body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
        lines.append(_curl(f"{url}/v1/chat/completions", body, keyed=keyed))
    for name in list(config.rewards)[:1]:
        item = {"id": "a", "prompt": "2 + 2 = ?", "responses": ["4", "5"]}
        lines.append(_curl(f"{url}/v1/rewards", {"model": name, "input": [item]}, keyed=keyed))
    return lines


def _curl(url: str, body: object, *, keyed: bool) -> str:
    key = '-H "Authorization: Bearer $FUSELINE_API_KEY" ' if keyed else ""
    return f"  curl -s {url} -H 'content-type: application/json' {key}-d {shlex.quote(json.dumps(body))}"


# ---- commands ---------------------------------------------------------------------------------


def serve_files(
    files: Sequence[Path],
    assignments: Sequence[str],
    *,
    host: str | None,
    port: int | None,
    security: Mapping[str, Any],
    address: str | None,
    swap: bool,
    write: Path | None,
) -> None:
    """Serve, swap or write what these files say; `host`, `port` and the fields in `security` win over them.

    Raises:
        FuselineError: bad input, or a service that does not come up.
    """
    from jobs.serve_config import load_config, write_deploy_file
    from jobs.swap import swap as swap_models

    if swap and (write or host or port):
        raise InputError("--swap keeps the address of the running service and writes nothing; leave the others out")
    config = load_config(files, assignments, host=host, port=port, security=security)
    if swap:
        os.nice(10)  # reading the new models takes a core for seconds, which those in service may need
        swap_models(config, address=address)
    elif write is not None:
        write_deploy_file(config, write)
        print(f"wrote {write}; start it with: serve deploy {write}")
    else:
        serve(config, address=address)


@cli.command()
def command(
    chat: Pair = None,
    reward: Pair = None,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the HTTP service.")] = 8000,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(help="Prompt plus answer in tokens; default: the model's.")
    ] = None,
    keys_file: Annotated[Path | None, typer.Option(help="Hashed API keys, made with `python -m jobs.keys`.")] = None,
    keys_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds plain API keys.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Allow a --host that other machines reach; needs keys.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; default: this job's, else one of our own.")] = None,
) -> None:
    """Serve local model folders."""
    try:
        engine = EnginePlacement(max_model_len=max_model_len)
        config = ServeConfig(
            chat={name: ChatModel(folder=folder, engine=engine) for name, folder in _pairs(chat, "--chat").items()},
            rewards={name: RewardModel(folder=folder) for name, folder in _pairs(reward, "--reward").items()},
            host=host,
            port=port,
            accelerator=TypeAdapter(Accelerator).validate_python(accelerator),
            security=Security(keys_file=keys_file, keys_env=keys_env, public=public),
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}") from None
    serve(config, address=address)


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for text in given or ():
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise InputError(f"{option} {text}: write it as NAME=FOLDER")
        if name in pairs:
            raise InputError(f"{option} names {name} twice")
        pairs[name] = Path(folder)
    return pairs


def main() -> None:
    """Entry point of `python -m jobs.serve`; a user's mistake is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    run_command(cli)


if __name__ == "__main__":
    main()
