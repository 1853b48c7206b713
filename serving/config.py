"""What is offered and where: the models of one service, its address, its limits.

Everything here says where and how fast answers are made, never what a stage computes, so all of it is
placement. The one idea: a model is a name that clients use and a folder that this service reads.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fusion.chat import ChatConfig
from fusion.config import Placement
from fusion.errors import InputError
from fusion.models import check_folder
from fusion.placement import Accelerator
from fusion.rewards import ClassifierSettings

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"


class EnginePlacement(Placement):
    """How the vLLM engine of one chat model is laid out. The same fields mean the same as in vLLM."""

    replicas: int = Field(default=1, ge=1)
    """Engines of this model; requests are spread over them."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs per engine."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory for weights and key-value cache; not used on CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is the checkpoint's own on GPU and float32 on CPU."""
    max_model_len: int | None = Field(default=None, ge=8)
    """Prompt plus answer, in tokens; None takes the model's own limit."""
    max_num_seqs: int = Field(default=32, ge=1)
    """Sequences in one engine at once."""
    max_queued_requests: int = Field(default=64, ge=0)
    """Requests that may wait for an engine; one more is answered 429."""

    @property
    def gpus(self) -> float:
        """GPUs that one worker of the engine asks Ray for: a half lets two engines share one."""
        return 1.0 if self.gpu_memory_utilization > 0.5 else 0.5


class RewardPlacement(Placement):
    """How one reward model is laid out."""

    replicas: int = Field(default=1, ge=1)
    """Copies of the model."""
    max_batch_requests: int = Field(default=16, ge=1)
    """Requests that are scored together."""
    gpu_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a GPU that one copy asks Ray for; not used on CPU."""
    batch_wait_s: float = Field(default=0.005, ge=0)
    """How long the first request of a batch waits for others, in seconds."""
    max_queued_requests: int = Field(default=64, ge=0)
    """Requests that may wait for a replica; one more is answered 429."""


class ChatModel(Placement):
    """One chat model."""

    folder: Path
    """Hugging Face folder: config.json, safetensors, tokenizer with chat template."""
    chat: ChatConfig = ChatConfig()
    """How conversations are rendered; must be what the model was trained with."""
    engine: EnginePlacement = EnginePlacement()


class RewardModel(Placement):
    """One sequence-classification reward model."""

    folder: Path
    """Hugging Face folder of a model with one output: config.json, safetensors, tokenizer with chat template."""
    settings: ClassifierSettings = ClassifierSettings()
    """How it reads and scores; a request says itself what happens to long conversations."""
    placement: RewardPlacement = RewardPlacement()


class Limits(Placement):
    """What one request may ask for; beyond it the answer is a 4xx."""

    chat_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Largest body of a chat request."""
    rewards_body_bytes: int = Field(default=4 << 20, ge=1024)
    """Largest body of a scoring request."""
    max_reward_items: int = Field(default=64, ge=1)
    """Responses in one scoring request."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest answer that a chat request may ask for, and the default where it names none."""
    deadline_s: float = Field(default=30.0, gt=0)
    """Time for a scoring request and for reading any body; a client may only lower it."""
    chat_deadline_s: float = Field(default=300.0, gt=0)
    """Time for a whole chat answer, streamed or not; a client may only lower it."""
    max_in_flight: int = Field(default=512, ge=1)
    """Requests in the HTTP front at once; one more is answered 429."""


class ServeConfig(Placement):
    """One service: its models, its address and its limits."""

    chat: dict[str, ChatModel] = Field(default_factory=dict)
    """Chat models by the name that clients use."""
    rewards: dict[str, RewardModel] = Field(default_factory=dict)
    """Reward models by the name that clients use."""
    host: str = "127.0.0.1"
    """Address to bind; loopback unless asked otherwise."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to bind."""
    accelerator: Accelerator = "auto"
    """Where models run; `auto` takes GPUs where the cluster has enough of them."""
    http_replicas: int = Field(default=1, ge=1)
    """Copies of the HTTP front; it renders and tokenises, models run elsewhere."""
    limits: Limits = Limits()
    run: Path | None = None
    """Folder with the results of the run that the page shows, e.g. `runs/demo`; None shows none."""
    app_name: str = Field(default="fuseline", pattern=MODEL_NAME)
    """Name of the Ray Serve application; another name lets two services share a cluster."""
    ready_timeout_s: float = Field(default=900.0, gt=0)
    """How long loading and warming up may take before the start is given up."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        if not self.chat and not self.rewards:
            raise ValueError("no model to serve: name at least one chat or reward model")
        both = self.chat.keys() & self.rewards.keys()
        if both:
            raise ValueError(f"{sorted(both)[0]!r} names a chat model and a reward model; use two names")
        for name in [*self.chat, *self.rewards]:
            check_name(name)
        return self

    @classmethod
    def of(cls, *, chat: dict[str, Path] | None = None, rewards: dict[str, Path] | None = None, **fields: Any) -> Self:
        """Return the config that serves these folders with default placement."""
        return cls(
            chat={name: ChatModel(folder=folder) for name, folder in (chat or {}).items()},
            rewards={name: RewardModel(folder=folder) for name, folder in (rewards or {}).items()},
            **fields,
        )

    def check_folders(self) -> None:
        """Raise ModelError, naming the file, if a model folder cannot be served."""
        for model in [*self.chat.values(), *self.rewards.values()]:
            check_folder(model.folder)


def check_name(name: str) -> str:
    """Return `name` if clients can use it in a request and Ray in a deployment name, else raise InputError."""
    if re.fullmatch(MODEL_NAME, name) is None:
        raise InputError(f"model name {name!r}: use letters, digits, dot, dash and underscore, at most 96")
    return name
