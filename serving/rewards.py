"""The reward deployment: one sequence classifier per replica, fed with the requests of many clients at once.

Scoring itself is `fusion.rewards`, the same code that the pipeline runs. Gathering requests into one call is
free of effects on the numbers, because a score there does not depend on its neighbours.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ray import serve
from ray.serve.deployment import Application

from fusion.rewards import ClassifierSettings, RewardScore, Truncation
from fusion.rows import Message
from serving.backends import Scored
from serving.config import RewardModel, RewardPlacement
from serving.layout import STEADY, scaling
from serving.schemas import ModelCard

Conversations = Sequence[tuple[Message, ...]]


class RewardServer:
    """A loaded reward model."""

    def __init__(
        self, name: str, folder: Path, settings: ClassifierSettings, placement: RewardPlacement, *, device: str
    ) -> None:
        """Load the model. Raises ModelError for weights that are missing, left over or of other shapes."""
        self._name = name
        self._folder = folder
        self._reward = settings.load(folder, device=device)
        gathered: Any = self._gathered  # serve.batch puts its setters on the function
        gathered.set_max_batch_size(placement.max_batch_requests)
        gathered.set_batch_wait_timeout_s(placement.batch_wait_s)

    async def score(self, conversations: Conversations, truncation: Truncation) -> list[Scored]:
        """Return one result per conversation, in order."""
        return await self._gathered((conversations, truncation))

    @serve.batch
    async def _gathered(self, requests: list[tuple[Conversations, Truncation]]) -> list[list[Scored]]:
        return await asyncio.to_thread(self._score, requests)

    def _score(self, requests: list[tuple[Conversations, Truncation]]) -> list[list[Scored]]:
        """Score the requests of each truncation in one call, so that they share forward passes."""
        results: list[list[Scored]] = [[] for _ in requests]
        for truncation in get_args(Truncation):
            chosen = [i for i, request in enumerate(requests) if request[1] == truncation]
            if not chosen:
                continue
            flat = [conversation for i in chosen for conversation in requests[i][0]]
            scores = iter(self._reward.score(flat, truncation=truncation))
            for i in chosen:
                results[i] = [self._scored(next(scores)) for _ in requests[i][0]]
        return results

    def _scored(self, result: RewardScore) -> Scored:
        message = result.error_message
        return Scored(
            score=result.score,
            num_tokens=result.num_tokens,
            truncated=result.truncated,
            objectives=result.objectives,
            error_code=result.error_code,
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
        max_ongoing_requests=placement.max_ongoing_requests,
        max_queued_requests=placement.max_queued_requests,
        ray_actor_options={"num_cpus": placement.cpus, "runtime_env": {"env_vars": environment}, **resources},
    ).bind(card.id, model.folder, model.settings, placement, device="cuda" if on_gpu else "cpu")
