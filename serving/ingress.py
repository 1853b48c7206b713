"""The Ray Serve application: one HTTP front, one deployment per model, handles between them.

The front renders and tokenises prompts and never loads a model; `app` holds its routes. Not here: the
engine (`engine`) and the reward model (`rewards`). The one idea: a backend is a card with a handle, and
every failure of a handle becomes an `ApiError`.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from fusion.errors import InputError, StageError
from serving import replicas
from serving.access import AccessLog
from serving.app import build_app
from serving.auth import ApiKey, Guard, Kind, load_keys
from serving.cards import chat_card, reward_card
from serving.config import ServeConfig
from serving.edge import Observers
from serving.handles import EngineBackend, ScorerBackend
from serving.layout import FRONT, STEADY, engine_name, reward_name, scaling
from serving.ray_metrics import RayTelemetry
from serving.readiness import Readiness, probes
from serving.schemas import ModelCard
from serving.telemetry import InMemory, Telemetry

logger = logging.getLogger(__name__)


@serve.ingress()
class Front:
    """The HTTP front of the application."""

    def __init__(
        self,
        config: ServeConfig,
        cards: dict[str, ModelCard],
        chats: dict[str, DeploymentHandle],
        rewards: dict[str, DeploymentHandle],
        on_gpu: bool,
        keys: tuple[ApiKey, ...] = (),
    ) -> None:
        self._config = config
        self._keys = keys
        self._telemetry = RayTelemetry() if config.observability.metrics else InMemory()
        self._models = Models(config, cards, chats, rewards, on_gpu=on_gpu, telemetry=self._telemetry)
        self._readiness = self._models.readiness()

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app. Where another front is in service, only once every model answers: Serve sends requests
        here from then on, and takes them from the other one. The first front answers `/readyz` while models load."""
        self._readiness.start()
        app = serve.get_replica_context().app_name
        self._watching = asyncio.create_task(replicas.watch(app, self._models.adjust))
        if await asyncio.to_thread(replicas.is_serving, app, FRONT):
            async with asyncio.timeout(self._config.ready_timeout_s):
                await self._readiness.settled()
            if self._readiness.refused is not None:
                raise StageError(self._readiness.refused)
        return build_app(
            chats=dict(self._models.chats),
            rewards=dict(self._models.rewards),
            limits=self._config.limits,
            not_ready=self._readiness.not_ready,
            behind_proxy=True,
            documented=not self._config.security.public,
            observers=self._observers(),
            header_bytes=self._config.security.header_bytes,
            idempotency=self._config.idempotency,
            run=self._config.run,
            seats=self._models.seats,
        )

    def _observers(self) -> Observers:
        guard = Guard(self._keys, fronts=self._config.http.most)
        return Observers(guard, self._telemetry, AccessLog(self._config.observability.access_log))

    def cards(self) -> dict[str, ModelCard]:
        """Return the cards of the models that this front serves; for the command that swaps them."""
        return self._models.cards

    def asks_for_keys(self) -> bool:
        """Return whether only holders of a key are answered; for the command that swaps models."""
        return bool(self._keys)

    def refused(self) -> str | None:
        """Return what keeps the service from ever becoming ready, or None; for the command that waits."""
        return self._readiness.refused


class Models:
    """The backends of one config."""

    def __init__(
        self,
        config: ServeConfig,
        cards: dict[str, ModelCard],
        chats: Mapping[str, DeploymentHandle],
        rewards: Mapping[str, DeploymentHandle],
        *,
        on_gpu: bool,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._config = config
        self.cards = cards
        fronts = config.http.most
        self.chats = {
            name: EngineBackend(cards[name], config.chat[name], handle, fronts=fronts, telemetry=telemetry)
            for name, handle in chats.items()
        }
        self.rewards = {
            name: ScorerBackend(
                cards[name], config.rewards[name], handle, on_gpu=on_gpu, fronts=fronts, telemetry=telemetry
            )
            for name, handle in rewards.items()
        }

    def seats(self) -> dict[Kind, int]:
        """Return how many requests all fronts together let in, by the kind of route: scores are asked for by chat too.

        A kind without a model is left out: its routes are not full, they have nothing, and the front says so.
        """
        reward = sum(model.line.seats for model in self.rewards.values())
        found: dict[Kind, int] = {
            "chat": sum(model.line.seats for model in self.chats.values()) + reward,
            "reward": reward,
        }
        return {kind: seats * self._config.http.most for kind, seats in found.items() if seats}

    def adjust(self, starting: bool) -> None:
        """Take over how many replicas each model has, and whether any are starting in the application."""
        for model in [*self.chats.values(), *self.rewards.values()]:
            model.line.adjust(replicas=replicas.living(model.handle))
            if starting:
                model.line.lengthen()

    def readiness(self) -> Readiness:
        """Return what says whether all of them answer well."""
        canaries = {name: self._config.rewards[name].canary for name in self.rewards}
        return Readiness(probes(self.chats, self.rewards, canaries), recheck_s=self._config.recheck_s)


def build(config: ServeConfig) -> Application:
    """Return the application for `serve deploy`, built on the cluster from the arguments of its file.

    Raises:
        InputError: a folder cannot be served, or the cluster lacks the GPUs that were asked for.
    """
    return build_application(config, on_gpu=config.runs_on_gpu(ray.cluster_resources().get("GPU", 0.0)))


def build_application(config: ServeConfig, *, on_gpu: bool) -> Application:
    """Return the application that serves `config`; model folders are read here, models are loaded on replicas.

    Raises:
        ModelError: a folder, its tokenizer or its template cannot be served; the text names the file.
        InputError: the API keys cannot be read.
    """
    config.check_folders()
    # Here and not on the replica: its node need not have the file or the variable, and gets hashes only.
    keys = load_keys(config.security)
    config = config.resolved()
    cards: dict[str, ModelCard] = {}
    chats: dict[str, Any] = {}
    rewards: dict[str, Any] = {}
    for name, chat in config.chat.items():
        # Only with a chat model: this imports vLLM, which takes seconds.
        from serving.engine import engine_deployment

        card = cards[name] = chat_card(name, chat, on_gpu=on_gpu)
        chats[name] = engine_deployment(card, chat, name=engine_name(card, chat, on_gpu=on_gpu), on_gpu=on_gpu)
    for name, reward in config.rewards.items():
        from serving.rewards import reward_deployment

        try:
            reward.placement.check_scaling(on_gpu=on_gpu)
        except ValueError as error:
            raise InputError(f"rewards.{name}.placement: {error}") from None
        card = cards[name] = reward_card(name, reward)
        rewards[name] = reward_deployment(card, reward, name=reward_name(card, reward, on_gpu=on_gpu), on_gpu=on_gpu)
    front: Any = serve.deployment(Front)
    actor = {"num_cpus": config.http.cpus, "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}}
    return front.options(
        **STEADY,
        **scaling(config.http),
        name=FRONT,
        # The front counts its requests itself and answers 429; the proxy would answer without an envelope.
        max_ongoing_requests=2 * config.limits.max_in_flight,
        # A front that is replaced ends the streams that it has begun.
        graceful_shutdown_timeout_s=config.limits.chat_deadline_s + 5,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={**actor, **({"resources": config.http.resources} if config.http.resources else {})},
    ).bind(config, cards, chats, rewards, on_gpu, keys)
