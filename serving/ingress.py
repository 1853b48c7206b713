"""The Ray Serve application: one HTTP front, one deployment per model, handles between them.

The front renders and tokenises prompts and never loads a model; `app` holds its routes. Not here: the
engine (`engine`) and the reward model (`rewards`). The one idea: a backend is a card with a handle, and
every failure of a handle becomes an `ApiError`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.deployment import Application
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from fusion.chat import Chat
from fusion.errors import InputError
from fusion.rows import Message
from serving.access import AccessLog
from serving.app import build_app
from serving.auth import ApiKey, Guard, load_keys
from serving.backends import Delta, Generation, Scored
from serving.cards import chat_card, reward_card
from serving.config import ChatModel, ServeConfig
from serving.edge import Observers
from serving.errors import ApiError
from serving.ray_metrics import RayTelemetry
from serving.schemas import ModelCard
from serving.telemetry import InMemory

logger = logging.getLogger(__name__)

Probe = Callable[[], Awaitable[None]]
"""Ends when the model has answered; raises where it did not."""


class EngineBackend:
    """A chat model behind a handle. Implements `ChatBackend`."""

    def __init__(self, card: ModelCard, model: ChatModel, handle: DeploymentHandle) -> None:
        self.card = card
        self._folder = model.folder
        self._chat = Chat.load(model.folder, model.chat)
        # Any: its type does not know that a streaming handle gives a generator.
        self._handle: Any = handle.options(stream=True)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._chat.stop_ids

    def encode(self, messages: Sequence[Message]) -> list[int]:
        try:
            return list(self._chat.encode_prompt(messages))
        except InputError as error:
            # Clients need not know where the model lies on the server.
            raise ValueError(str(error).replace(str(self._folder), self.card.id)) from None

    def token_text(self, token_id: int) -> str:
        return str(self._chat.tokenizer.decode([token_id], skip_special_tokens=False))

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Delta], None]:
        stream = self._handle.generate.remote(generation)
        try:
            async for deltas in stream:
                yield deltas
        except Exception as error:
            raise _api_error(error, self.card.id) from error
        finally:
            # Closing the HTTP stream ends here; without this the engine would go on to the last token.
            stream.cancel()


class ScorerBackend:
    """A reward model behind a handle. Implements `RewardBackend`."""

    def __init__(self, card: ModelCard, handle: DeploymentHandle) -> None:
        self.card = card
        self._handle = handle

    async def score(
        self, conversations: Sequence[tuple[Message, ...]], *, truncation: Literal["error", "left", "right"]
    ) -> list[Scored]:
        try:
            return await self._handle.score.remote(list(conversations), truncation)
        except Exception as error:
            raise _api_error(error, self.card.id) from error


def _api_error(error: Exception, model: str) -> ApiError:
    """Return what a failed call of a handle means for the client."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ApiError):
        return ApiError(cause.code, cause.message, param=cause.param)
    if isinstance(cause, BackPressureError):
        return ApiError("overloaded", f"{model} has too many waiting requests; try again")
    if isinstance(cause, RayServeException | RayError):
        logger.error("%s is not available: %s", model, type(cause).__name__)
        return ApiError("backend_unavailable", f"{model} is not available at this moment; try again")
    logger.exception("%s failed", model, exc_info=error)
    return ApiError("internal_error", f"{model} failed on the server")


@serve.ingress()
class Front:
    """The HTTP front of the application."""

    def __init__(
        self,
        config: ServeConfig,
        cards: dict[str, ModelCard],
        chats: dict[str, DeploymentHandle],
        rewards: dict[str, DeploymentHandle],
        keys: tuple[ApiKey, ...] = (),
    ) -> None:
        self._config = config
        self._keys = keys
        self._chats = {name: EngineBackend(cards[name], config.chat[name], h) for name, h in chats.items()}
        self._rewards = {name: ScorerBackend(cards[name], h) for name, h in rewards.items()}
        self._waiting = dict.fromkeys(cards, "loading")
        self._tasks: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> FastAPI:
        for name, backend in self._chats.items():
            self._tasks.append(asyncio.create_task(self._until_warm(name, _chat_probe(backend))))
        for name, backend in self._rewards.items():
            self._tasks.append(asyncio.create_task(self._until_warm(name, _reward_probe(backend))))
        return build_app(
            chats=dict(self._chats),
            rewards=dict(self._rewards),
            limits=self._config.limits,
            not_ready=self._not_ready,
            behind_proxy=True,
            observers=self._observers(),
            header_bytes=self._config.security.header_bytes,
            idempotency=self._config.idempotency,
        )

    def _observers(self) -> Observers:
        seen = self._config.observability
        return Observers(
            Guard(self._keys, fronts=self._config.http_replicas),
            RayTelemetry() if seen.metrics else InMemory(),
            AccessLog(seen.access_log),
        )

    def _not_ready(self) -> str | None:
        return ", ".join(f"{name} is {state}" for name, state in sorted(self._waiting.items())) or None

    async def _until_warm(self, name: str, probe: Probe) -> None:
        """Ask the model until it answers: the first request after a start takes seconds (lazy imports)."""
        started = time.monotonic()
        while True:
            try:
                await probe()
            except ApiError as error:
                self._waiting[name] = f"not answering ({error.code})"
                await asyncio.sleep(1.0)
                continue
            except Exception:
                logger.exception("the warm-up of %s failed", name)
                self._waiting[name] = "failing its warm-up"
                await asyncio.sleep(5.0)
                continue
            break
        logger.info("%s answered after %.1f s", name, time.monotonic() - started)
        del self._waiting[name]


def _chat_probe(backend: EngineBackend) -> Probe:
    async def probe() -> None:
        ids = backend.encode([Message("user", "Hello")])
        asked = Generation("warm-up", tuple(ids), max_tokens=2, stop_token_ids=backend.stop_token_ids)
        async with aclosing(backend.generate(asked)) as stream:
            async for _ in stream:
                pass

    return probe


def _reward_probe(backend: ScorerBackend) -> Probe:
    async def probe() -> None:
        conversation = (Message("user", "Hello"), Message("assistant", "Hello, how can I help?"))
        await backend.score([conversation], truncation="left")

    return probe


def build_application(config: ServeConfig, *, on_gpu: bool) -> Application:
    """Return the application that serves `config`; model folders are read here, models are loaded on replicas.

    Raises:
        ModelError: a folder, its tokenizer or its template cannot be served; the text names the file.
        InputError: the API keys cannot be read.
    """
    config.check_folders()
    # Here and not on the replica: its node need not have the file or the variable, and gets hashes only.
    keys = load_keys(config.security)
    cards: dict[str, ModelCard] = {}
    chats: dict[str, Any] = {}
    rewards: dict[str, Any] = {}
    for name, model in config.chat.items():
        card = cards[name] = chat_card(name, model, on_gpu=on_gpu)
        # Only with a chat model: this imports vLLM, which takes seconds.
        from serving.engine import engine_deployment

        chats[name] = engine_deployment(
            name,
            str(model.folder.resolve()),
            model.engine,
            dtype=card.dtype,
            max_model_len=card.max_tokens,
            on_gpu=on_gpu,
        )
    for name, model in config.rewards.items():
        from serving.rewards import reward_deployment

        cards[name] = reward_card(name, model)
        rewards[name] = reward_deployment(name, model, on_gpu=on_gpu)
    resolved = config.model_copy(
        update={"chat": {n: m.model_copy(update={"folder": m.folder.resolve()}) for n, m in config.chat.items()}}
    )
    front: Any = serve.deployment(Front)
    return front.options(
        name="front",
        num_replicas=config.http_replicas,
        # The front counts its requests itself and answers 429; the proxy would answer without an envelope.
        max_ongoing_requests=2 * config.limits.max_in_flight,
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}},
    ).bind(resolved, cards, chats, rewards, keys)
