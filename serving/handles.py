"""Models behind Ray Serve handles: the two backends of the HTTP front, and what a failed call means to a client.

The one idea: a model has so many seats in this front, and who finds none is refused before anything is done for him. A
call is then first given to a replica and then answered, and each half has its own patience: what no replica takes is
refused within seconds instead of waiting for its deadline, with 429 where the model is at work and 503 where it has not
answered anybody lately. Scoring has no effects, so a score whose replica died is asked for again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from fusion.chat import Chat
from fusion.errors import InputError
from fusion.rows import Message
from serving import deadline
from serving.backends import Delta, Generation, Scored
from serving.config import ChatModel, RewardModel
from serving.errors import ApiError, trace
from serving.schemas import ModelCard
from serving.telemetry import QUEUE, InMemory, Telemetry

logger = logging.getLogger(__name__)

TAKEN_WITHIN_S = 5.0
"""How long a request waits for a replica with a free place."""
SCORE_ATTEMPTS = 3


class _Model:
    """What both kinds of models have in common: a card, seats, and when a replica last answered."""

    def __init__(self, card: ModelCard, seats: int, telemetry: Telemetry | None) -> None:
        self.card = card
        self.seats = seats
        """Requests that this front lets in at once."""
        self._telemetry = telemetry or InMemory()
        self._seated = self._waiting = 0
        self._answered_at = -1e9

    def check_seats(self) -> None:
        """Raise overloaded where no seat is free."""
        if self._seated >= self.seats:
            raise _overloaded(self.card.id)

    @contextmanager
    def _seat(self) -> Iterator[None]:
        self.check_seats()
        self._seated += 1
        try:
            yield
        finally:
            self._seated -= 1

    def _answered(self) -> None:
        self._answered_at = time.monotonic()

    async def _taken(self, assigned: Awaitable[object]) -> None:
        """Wait until a replica has the request. Raises ApiError where none takes it."""
        begun = time.monotonic()
        try:
            self._count_waiting(1)
            async with asyncio.timeout(min(TAKEN_WITHIN_S, max(0.0, deadline.remaining_s()))):
                await assigned
        except TimeoutError:
            if self._answered_at > begun - TAKEN_WITHIN_S:
                raise _overloaded(self.card.id) from None
            raise ApiError("backend_unavailable", f"{self.card.id} takes no requests now; try again") from None
        finally:
            self._count_waiting(-1)

    def _count_waiting(self, by: int) -> None:
        self._waiting += by
        self._telemetry.add(QUEUE, self._waiting, {"model": self.card.id})


class EngineBackend(_Model):
    """A chat model behind a handle. Implements `ChatBackend`."""

    def __init__(
        self,
        card: ModelCard,
        model: ChatModel,
        handle: DeploymentHandle,
        *,
        fronts: int = 1,
        telemetry: Telemetry | None = None,
    ) -> None:
        engine = model.engine
        seats = engine.seats(engine.max_ongoing_requests, engine.queued_requests, fronts=fronts)
        super().__init__(card, seats, telemetry)
        self._folder = model.folder
        self._chat = Chat.load(model.folder, model.chat)
        # Any: its type does not know that a streaming handle gives a generator.
        self._handle: Any = handle.options(stream=True)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._chat.stop_ids

    def encode(self, messages: Sequence[Message]) -> list[int]:
        self.check_seats()  # before the work of rendering
        try:
            return list(self._chat.encode_prompt(messages))
        except InputError as error:
            # Clients need not know where the model lies on the server.
            raise ValueError(str(error).replace(str(self._folder), self.card.id)) from None

    def token_text(self, token_id: int) -> str:
        return str(self._chat.tokenizer.decode([token_id], skip_special_tokens=False))

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Delta], None]:
        with self._seat():
            stream = self._handle.generate.remote(generation)
            try:
                await self._taken(stream._to_object_ref_gen())
                async for deltas in stream:
                    self._answered()
                    yield deltas
            except Exception as error:
                raise api_error(error, self.card.id) from error
            finally:
                # Closing the HTTP stream ends here; without this the engine would go on to the last token.
                _give_up(stream)


class ScorerBackend(_Model):
    """A reward model behind a handle. Implements `RewardBackend`."""

    def __init__(
        self,
        card: ModelCard,
        model: RewardModel,
        handle: DeploymentHandle,
        *,
        on_gpu: bool,
        fronts: int = 1,
        telemetry: Telemetry | None = None,
    ) -> None:
        placement = model.placement
        ongoing = placement.ongoing_requests(on_gpu=on_gpu)
        seats = placement.seats(ongoing, placement.max_queued_requests, fronts=fronts)
        super().__init__(card, seats, telemetry)
        self._handle = handle
        self._has_told = False

    async def score(
        self, conversations: Sequence[tuple[Message, ...]], *, truncation: Literal["error", "left", "right"]
    ) -> list[Scored]:
        with self._seat():
            for attempt in range(1, SCORE_ATTEMPTS + 1):
                try:
                    return await self._ask(list(conversations), truncation)
                except RayActorError as error:
                    if attempt == SCORE_ATTEMPTS:
                        raise api_error(error, self.card.id) from error
                    logger.warning("a replica of %s died; asking another one", self.card.id)
                except Exception as error:
                    raise api_error(error, self.card.id) from error
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, conversations: list[tuple[Message, ...]], truncation: str) -> list[Scored]:
        response: Any = self._handle.score.remote(conversations, truncation, min(deadline.remaining_s(), 3600.0))
        try:
            await self._taken(response._to_object_ref())
            found: list[Scored] = await response
        finally:
            _give_up(response)  # does nothing to an answer that has come
        self._answered()
        if not self._has_told:  # once, in the warm-up: what was tried out on the loaded model is known to replicas only
            self.card = self.card.model_copy(update={"determinism": await self._handle.determinism.remote()})
            self._has_told = True
        return found


def _give_up(call: Any) -> None:
    """Cancel a call. Of one that has failed, Ray raises the failure here again, in place of what was made of it."""
    with suppress(RayError, RayServeException):
        call.cancel()


def _overloaded(model: str) -> ApiError:
    return ApiError("overloaded", f"{model} has too many waiting requests; try again")


def api_error(error: Exception, model: str) -> ApiError:
    """Return what a failed call of a handle means for the client."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ApiError):
        return ApiError(cause.code, cause.message, param=cause.param)
    if isinstance(cause, BackPressureError):
        return _overloaded(model)
    if isinstance(cause, RayServeException | RayError):
        logger.error("%s is not available: %s", model, type(cause).__name__)
        return ApiError("backend_unavailable", f"{model} is not available at this moment; try again")
    # Without its text, which may quote a prompt.
    logger.error("%s failed: %s", model, trace(error))
    return ApiError("internal_error", f"{model} failed on the server")
