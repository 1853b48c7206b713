"""Models behind Ray Serve handles: the two backends of the HTTP front, and what a failed call means to a client.

The one idea: a call waits in the line of its model (`line`) and is given to Ray when a replica has a place for it.
Scoring has no effects, so a score whose replica died is asked for again.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
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
from serving.line import Line, overloaded
from serving.schemas import ModelCard
from serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

SCORE_ATTEMPTS = 3


class EngineBackend:
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
        self.card = card
        engine = model.engine
        self.line = Line(
            card.id,
            replicas=engine.at_least,
            each=engine.ongoing_requests,
            fronts=fronts,
            queued=engine.queued_requests,
            queued_while_starting=engine.max_queued_while_starting,
            telemetry=telemetry,
        )
        self._folder = model.folder
        self._chat = Chat.load(model.folder, model.chat)
        # Any: its type does not know that a streaming handle gives a generator.
        self.handle: Any = handle.options(stream=True)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._chat.stop_ids

    def encode(self, messages: Sequence[Message]) -> list[int]:
        self.line.check()  # before the work of rendering
        try:
            return list(self._chat.encode_prompt(messages))
        except InputError as error:
            # Clients need not know where the model lies on the server.
            raise ValueError(str(error).replace(str(self._folder), self.card.id)) from None

    def token_text(self, token_id: int) -> str:
        return str(self._chat.tokenizer.decode([token_id], skip_special_tokens=False))

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Delta], None]:
        async with self.line.place():
            stream = self.handle.generate.remote(generation)
            try:
                await self.line.patiently(stream._to_object_ref_gen())
                async for deltas in stream:
                    self.line.answered()
                    yield deltas
            except Exception as error:
                if isinstance(error, RayActorError):
                    self.line.lengthen()
                raise api_error(error, self.card.id) from error
            finally:
                # Closing the HTTP stream ends here; without this the engine would go on to the last token.
                _give_up(stream)


class ScorerBackend:
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
        self.card = card
        self.line = Line(
            card.id,
            replicas=placement.at_least,
            each=placement.ongoing_requests(on_gpu=on_gpu),
            fronts=fronts,
            queued=placement.queued_requests(on_gpu=on_gpu),
            queued_while_starting=placement.max_queued_while_starting,
            telemetry=telemetry,
        )
        self.handle = handle
        self._has_told = False

    async def score(
        self, conversations: Sequence[tuple[Message, ...]], *, truncation: Literal["error", "left", "right"]
    ) -> list[Scored]:
        async with self.line.place():
            for attempt in range(1, SCORE_ATTEMPTS + 1):
                try:
                    return await self._ask(list(conversations), truncation)
                except RayActorError as error:
                    self.line.lengthen()
                    if attempt == SCORE_ATTEMPTS:
                        raise api_error(error, self.card.id) from error
                    logger.warning("a replica of %s died; asking another one", self.card.id)
                except Exception as error:
                    raise api_error(error, self.card.id) from error
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, conversations: list[tuple[Message, ...]], truncation: str) -> list[Scored]:
        response: Any = self.handle.score.remote(conversations, truncation, min(deadline.remaining_s(), 3600.0))
        try:
            await self.line.patiently(response._to_object_ref())
            found: list[Scored] = await response
        finally:
            _give_up(response)  # does nothing to an answer that has come
        self.line.answered()
        if not self._has_told:  # once, in the warm-up: what was tried out on the loaded model is known to replicas only
            self.card = self.card.model_copy(update={"determinism": await self.handle.determinism.remote()})
            self._has_told = True
        return found


def _give_up(call: Any) -> None:
    """Cancel a call. Of one that has failed, Ray raises the failure here again, in place of what was made of it."""
    with suppress(RayError, RayServeException):
        call.cancel()


def api_error(error: Exception, model: str) -> ApiError:
    """Return what a failed call of a handle means for the client."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ApiError):
        return ApiError(cause.code, cause.message, param=cause.param)
    if isinstance(cause, BackPressureError):
        return overloaded(model)
    if isinstance(cause, RayServeException | RayError):
        logger.error("%s is not available: %s", model, type(cause).__name__)
        return ApiError("backend_unavailable", f"{model} is not available at this moment; try again")
    # Without its text, which may quote a prompt.
    logger.error("%s failed: %s", model, trace(error))
    return ApiError("internal_error", f"{model} failed on the server")
