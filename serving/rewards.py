"""The reward deployment: one reward model per replica, fed with the requests of many clients at once.

Scoring itself is `fusion.rewards`, the same code that the pipeline runs. Gathering requests into one call is
free of effects on the numbers, because a score there does not depend on its neighbours.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ray import serve
from ray.serve.deployment import Application

from fusion.rewards import RewardModelSettings, RewardScore, Truncation
from fusion.rewards.family import settings_for
from fusion.rows import Message
from serving.backends import Scored
from serving.config import RewardModel, RewardPlacement
from serving.layout import ROOM, STEADY, scaling
from serving.schemas import ModelCard

logger = logging.getLogger(__name__)

Conversations = Sequence[tuple[Message, ...]]

_TOO_LATE = Scored(None, 0, error_code="deadline_exceeded", error_message="the deadline came before its turn")


class _Asked(NamedTuple):
    """One request as it waits for its batch."""

    conversations: Conversations
    truncation: Truncation
    ends_at: float
    """On the monotonic clock of the replica."""


class RewardServer:
    """A loaded reward model."""

    def __init__(
        self, name: str, folder: Path, settings: RewardModelSettings, placement: RewardPlacement, *, device: str
    ) -> None:
        """Load the model. Raises ModelError for weights that are missing, left over or of other shapes."""
        self._name = name
        self._folder = folder
        self._reward = settings_for(folder, settings).load(folder, device=device)
        gathered: Any = self._gathered  # serve.batch puts its setters on the function
        gathered.set_max_batch_size(placement.batch_requests(on_gpu=device == "cuda"))
        gathered.set_batch_wait_timeout_s(placement.batch_wait_s)

    async def determinism(self) -> str:
        """Return what `/v1/models` says of equal inputs: what was tried out on this replica when it loaded."""
        if self._reward.tolerance == 0:
            return "bitwise: a score does not depend on the other responses of a request, on order, batch or replica"
        return f"a score moves by up to about {self._reward.tolerance:.1g} with what else is scored with it (tried at load)"

    async def score(self, conversations: Conversations, truncation: Truncation, within_s: float) -> list[Scored]:
        """Return one result per conversation, in order; those not begun `within_s` seconds are `deadline_exceeded`."""
        return await self._gathered(_Asked(conversations, truncation, time.monotonic() + within_s))

    @serve.batch
    async def _gathered(self, requests: list[_Asked]) -> list[list[Scored]]:
        return await asyncio.to_thread(self._score, requests)

    def _score(self, requests: list[_Asked]) -> list[list[Scored]]:
        """Score the requests of each truncation in one call, so that they share forward passes."""
        # Nobody waits any more for those whose time is over: an overloaded model would score only for them.
        results = [[_TOO_LATE] * len(request.conversations) for request in requests]
        now = time.monotonic()
        for truncation in get_args(Truncation):
            chosen = [i for i, r in enumerate(requests) if r.truncation == truncation and r.ends_at > now]
            if not chosen:
                continue
            flat = [conversation for i in chosen for conversation in requests[i].conversations]
            scores = iter(self._score_all(flat, truncation))
            for i in chosen:
                results[i] = [self._scored(next(scores)) for _ in requests[i].conversations]
        return results

    def _score_all(self, conversations: Conversations, truncation: Truncation) -> list[RewardScore]:
        """Score in one call; where that fails (out of memory), one by one, so that one item does not spoil the others."""
        try:
            return self._reward.score(conversations, truncation=truncation)
        except (RuntimeError, MemoryError):
            logger.exception(
                "%s failed on %d conversations together; going on one by one", self._name, len(conversations)
            )
        return [self._score_one(conversation, truncation) for conversation in conversations]

    def _score_one(self, conversation: tuple[Message, ...], truncation: Truncation) -> RewardScore:
        try:
            return self._reward.score([conversation], truncation=truncation)[0]
        except (RuntimeError, MemoryError) as error:
            logger.error("%s failed on a conversation: %s", self._name, type(error).__name__)
            return RewardScore.failed("scorer_error", "the model failed on this conversation")

    def _scored(self, result: RewardScore) -> Scored:
        message = result.error_message
        return Scored(
            score=result.score,
            num_tokens=result.num_tokens,
            truncated=result.truncated,
            objectives=result.objectives,
            error_code="backend_error" if result.error_code == "scorer_error" else result.error_code,
            # Clients need not know where the model lies on the server.
            error_message=message and message.replace(str(self._folder), self._name),
        )


def reward_deployment(card: ModelCard, model: RewardModel, *, name: str, on_gpu: bool) -> Application:
    """Return the deployment of one reward model under this name, to be bound into an application."""
    placement = model.placement
    resources: dict[str, Any] = {"num_gpus": placement.gpu_share} if on_gpu else {}
    if placement.resources:
        resources["resources"] = placement.resources
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if not on_gpu:
        # The number of threads decides in which order a sum is taken, and so the last bits of a score.
        environment["OMP_NUM_THREADS"] = "1"
    deployment: Any = serve.deployment(RewardServer)
    return deployment.options(
        **STEADY,
        **scaling(placement),
        name=name,
        max_ongoing_requests=ROOM * placement.ongoing_requests(on_gpu=on_gpu),
        ray_actor_options={"num_cpus": placement.cpus, "runtime_env": {"env_vars": environment}, **resources},
    ).bind(card.id, model.folder, model.settings, placement, device="cuda" if on_gpu else "cpu")
