"""What `fuseline serve` is given, as a `ServeConfig`: a recipe, a serve config, or a file for `serve deploy`.

Which one a file is stands in its content: a recipe has a `target`, a file for a cluster has `applications`, and a
serve config has its models at the top. Overlays and `--set` work on all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fusion.chat import ChatConfig
from fusion.errors import InputError, RecipeError, StageError
from fusion.loading import merge, read_layers, validate
from fusion.models import PinnedModel
from fusion.recipe import Recipe
from serving.config import ChatModel, RewardModel, ServeConfig
from serving.proxy import environment

BUILDER = "serving.ingress:build"


def load_config(
    paths: Sequence[Path],
    assignments: Sequence[str] = (),
    *,
    host: str | None = None,
    port: int | None = None,
    security: Mapping[str, Any] | None = None,
) -> ServeConfig:
    """Return the service that these files describe; `host`, `port` and the fields in `security` win over them.

    Raises:
        RecipeError: one line per mistake, each with file, field and the nearest name.
        StageError: a recipe whose run has not exported its model yet.
    """
    where = ", ".join(map(str, paths))
    given = {"host": host, "port": port, "security": dict(security) if security else None}
    own = {name: value for name, value in given.items() if value is not None}
    data = read_layers(paths[:1], called="file")
    if "target" in data or "sources" in data:
        recipe = validate(Recipe, read_layers(paths, assignments, called="recipe"), where=where)
        return validate(ServeConfig, merge(from_recipe(recipe), own), where=where)
    if "applications" in data:
        data = _arguments(data, str(paths[0]))
    elif not data.keys() & {"chat", "rewards"}:
        raise RecipeError(
            f"{paths[0]}: neither a recipe (it has no 'target') nor a serve config (it has no 'chat' or 'rewards')"
        )
    data = read_layers(paths[1:], assignments, called="serve config", base=data)
    return validate(ServeConfig, merge(data, own), where=where)


def _arguments(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the serve config in a file for `serve deploy`."""
    match data["applications"]:
        case [{"import_path": path, "args": dict() as arguments}] if path == BUILDER:
            return arguments
    raise RecipeError(f"{where}: applications must be one whose import_path is {BUILDER}, with args")


def from_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of the `ServeConfig` of a finished run: the exported arm under its name, the models named beside
    it, the rewards, and an access log beside the run's results.

    Raises:
        RecipeError: the recipe serves nothing.
        StageError: the run has not exported its model yet.
    """
    if recipe.serve is None:
        raise RecipeError("the recipe has no 'serve' block; name the arm to serve: --set serve.arm=NAME")
    folder = recipe.result_dir / "model"
    if not folder.is_dir():
        raise StageError(f"{folder} does not exist yet; make it with: fuseline run")
    digests = recipe.root / ".digests.json"
    # Date and thinking are fixed in the exported template; a system prompt is not a part of any template.
    own = ChatConfig(system=recipe.target.chat.system, date=recipe.target.chat.date)
    chat = {recipe.serve.arm: ChatModel(folder=folder, chat=own)}
    given = {"target": recipe.target, **recipe.source_models}
    for name in recipe.serve.also:
        chat[name] = ChatModel(folder=PinnedModel(name, given[name], digests).folder(), chat=given[name].chat)
    rewards = {
        name: RewardModel(folder=PinnedModel(name, ref, digests).folder(), canary=ref.canary)
        for name, ref in recipe.serve.rewards.items()
    }
    log = {"access_log": str(recipe.result_dir / "access.jsonl")}
    return {"chat": chat, "rewards": rewards, "run": recipe.result_dir, "observability": log}


def given_security(*, keys_file: Path | None, keys_env: str | None, public: bool) -> dict[str, Any]:
    """Return the fields of `Security` that a command line gives; what it leaves out is the file's."""
    given = {"keys_file": keys_file, "keys_env": keys_env, "public": public or None}
    return {name: value for name, value in given.items() if value is not None}


def write_deploy_file(config: ServeConfig, path: Path) -> None:
    """Write the file that `serve deploy` takes. It names model folders, never a key or a token.

    Raises:
        InputError: the file cannot be written.
    """
    arguments = config.resolved().model_dump(mode="json", exclude_unset=True)
    value = {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.host, "port": config.port},
        # Serve's proxies take the environment of its controller.
        "controller_options": {"runtime_env": {"env_vars": environment(config.limits)}},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {"name": config.app_name, "route_prefix": "/", "import_path": BUILDER, "args": arguments},
        ],
    }
    text = _HEAD.format(path=path, app=config.app_name) + yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


_HEAD = """\
# Written by `fuseline serve --write`; for a Ray cluster, from a machine that reaches its dashboard:
#
#   serve deploy {path} --address http://HEAD:8265
#   serve status --address http://HEAD:8265        # until {app} is RUNNING; then ask /readyz
#
# Every node needs fuseline installed and the model folders below at the same paths (shared storage).
# Another model in a running service: edit this file, then
#
#   fuseline serve --swap {path} --address HEAD:6379
#
# which loses no request. `serve deploy` of a changed file stops models that are no longer in it at once, and loads the
# new ones meanwhile. Keys are not here: a config names the file or the environment variable that holds them.
# `args` is a serve config: its fields, with replicas, autoscaling and placement per model, stand in serving/config.py.
"""
