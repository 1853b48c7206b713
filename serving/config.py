"""What is offered and where: the models of one service, its address, its limits.

Everything here says where and how fast answers are made, never what a stage computes, so all of it is
placement. The one idea: a model is a name that clients use and a folder that this service reads.
"""

import ipaddress
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusion.chat import ChatConfig
from fusion.config import Placement
from fusion.errors import ClusterError, InputError
from fusion.models import check_folder
from fusion.placement import Accelerator
from fusion.rewards import Canary, RewardModelSettings

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"


class Autoscaling(Placement):
    """How the number of replicas follows the load."""

    min_replicas: int = Field(default=1, ge=1)
    """Replicas that are always there."""
    max_replicas: int = Field(ge=1)
    """Replicas at most; each asks the cluster for its own share."""
    target_ongoing_requests: float = Field(gt=0)
    """Requests in progress per replica that are aimed at; more of them add replicas. It has no default, because the
    right one depends on the model, and Ray's own (1e9) would never scale."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """How long the load must be above the target before replicas are added."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """How long it must be below before replicas are taken away; loading one again takes minutes."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, above max_replicas {self.max_replicas}")
        return self


class Replicas(Placement):
    """How many copies of something there are and where they may run."""

    replicas: int = Field(default=1, ge=1)
    """Copies; requests are spread over them."""
    autoscaling: Autoscaling | None = None
    """Lets the load decide instead of `replicas`."""
    resources: dict[str, float] = {}
    """Ray resources that each copy asks for besides its CPUs and GPUs, to say on which nodes it may run: a node's own
    label, or a kind of GPU as `{"accelerator_type:H100": 0.001}`."""

    @model_validator(mode="after")
    def _one_count(self) -> Self:
        if self.autoscaling is not None and "replicas" in self.model_fields_set:
            raise ValueError("replicas and autoscaling are both given; autoscaling has min_replicas and max_replicas")
        for name, amount in self.resources.items():
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(f"resources: {name} has its own field; resources are the cluster's other names")
            if amount <= 0:
                raise ValueError(f"resources: {name} is {amount:g}; ask for more than 0")
        return self

    @property
    def at_least(self) -> int:
        """Copies that the cluster must have room for from the start."""
        return self.autoscaling.min_replicas if self.autoscaling else self.replicas

    @property
    def most(self) -> int:
        """Copies that there are at most."""
        return self.autoscaling.max_replicas if self.autoscaling else self.replicas

    def check_target(self, most: int, what: str) -> None:
        """Raise ValueError if a copy is full before, or just when, the load is above its target: Ray would add none."""
        if self.autoscaling is not None and self.autoscaling.target_ongoing_requests >= most:
            raise ValueError(
                f"target_ongoing_requests is {self.autoscaling.target_ongoing_requests:g}, but a replica takes {most} "
                f"({what}); it would never scale"
            )


class ModelReplicas(Replicas):
    """How many copies of a model there are, and how many requests wait for them in a front."""

    max_queued_requests: int | None = Field(default=None, ge=0)
    """Requests that may wait for a copy; one more is answered 429. null is a share of what a copy takes: who would wait
    longer than an answer takes is better told to come back."""
    max_queued_while_starting: int = Field(default=64, ge=0)
    """The same while replicas start, after a death or in a rollout: that passes, so they may wait."""


class EnginePlacement(ModelReplicas):
    """How the vLLM engine of one chat model is laid out. The same fields mean the same as in vLLM."""

    cpus: float = Field(default=0.5, gt=0)
    """Logical CPUs that one worker of an engine asks Ray for where it runs on CPUs. Small, so that a machine with two
    cores holds several engines, the front, the reward models and Serve itself."""
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

    @property
    def gpus(self) -> float:
        """GPUs that one worker of the engine asks Ray for: a half lets two engines share one."""
        return 1.0 if self.gpu_memory_utilization > 0.5 else 0.5

    @property
    def ongoing_requests(self) -> int:
        """Requests in one replica: more than the engine's seats, so that the next one waits there, not on the wire."""
        return self.max_num_seqs + -(-self.max_num_seqs // 16)

    @property
    def queued_requests(self) -> int:
        """Requests that may wait for an engine: by default a quarter of `max_num_seqs`."""
        return -(-self.max_num_seqs // 4) if self.max_queued_requests is None else self.max_queued_requests

    @model_validator(mode="after")
    def _scales(self) -> Self:
        self.check_target(self.ongoing_requests, "max_num_seqs and a sixteenth")
        return self


class RewardPlacement(ModelReplicas):
    """How one reward model is laid out."""

    cpus: float = Field(default=0.5, gt=0)
    """Logical CPUs that one copy asks Ray for."""
    max_batch_requests: int | None = Field(default=None, ge=1)
    """Requests that are scored together; null is 1 on CPU, where a batch saves nothing and others wait for it, 16 on GPU."""
    gpu_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a GPU that one copy asks Ray for; not used on CPU."""
    batch_wait_s: float = Field(default=0.005, ge=0)
    """How long the first request of a batch waits for others, in seconds."""

    def batch_requests(self, *, on_gpu: bool) -> int:
        """Return how many requests are scored together."""
        return self.max_batch_requests or (16 if on_gpu else 1)

    def ongoing_requests(self, *, on_gpu: bool) -> int:
        """Return how many requests one replica takes: one batch is scored while the next one gathers."""
        return 2 * self.batch_requests(on_gpu=on_gpu)

    def queued_requests(self, *, on_gpu: bool) -> int:
        """Return how many requests may wait: by default as many as one copy takes, at least 8."""
        if self.max_queued_requests is not None:
            return self.max_queued_requests
        return max(8, self.ongoing_requests(on_gpu=on_gpu))

    @model_validator(mode="after")
    def _scales(self) -> Self:
        self.check_scaling(on_gpu=self.max_batch_requests is None)  # where it runs is not known yet
        return self

    def check_scaling(self, *, on_gpu: bool) -> None:
        """Raise ValueError if a copy would be full before the load adds another one."""
        self.check_target(self.ongoing_requests(on_gpu=on_gpu), "twice max_batch_requests")


class FrontPlacement(Replicas):
    """How the HTTP front is laid out; it renders and tokenises, models run elsewhere."""

    cpus: float = Field(default=0.1, gt=0)
    """Logical CPUs that one copy asks Ray for."""


class ChatModel(Placement):
    """One chat model."""

    folder: Path
    """Hugging Face folder: config.json, safetensors, tokenizer with chat template."""
    chat: ChatConfig = ChatConfig()
    """How conversations are rendered; must be what the model was trained with."""
    engine: EnginePlacement = EnginePlacement()


class RewardModel(Placement):
    """One reward model: a sequence classifier or an ArmoRM, as its config.json says."""

    folder: Path
    """Hugging Face folder: config.json, safetensors, tokenizer with chat template."""
    settings: RewardModelSettings = RewardModelSettings()
    """How it reads and scores; a request says itself what happens to long conversations."""
    canary: Canary | None = None
    """A known pair that it must score in the right order before it serves, and from time to time. None asks only for
    a finite score."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest score that were seen when the model was made; told to clients."""
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


class Security(Placement):
    """Who may use the service. Keys themselves are never part of a config: it says where they are."""

    keys_file: Path | None = None
    """YAML or JSON file of hashed keys, made with `python -m jobs.keys new`; others may not read it. A key's rates
    hold for the whole service: each copy of the HTTP front gives out its equal share."""
    keys_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of an environment variable that holds one or more plain keys, apart by commas or spaces."""
    public: bool = False
    """Allow an address that other machines reach; needs keys."""
    header_bytes: int = Field(default=16 * 1024, ge=1024)
    """Most bytes of request line and headers."""

    @property
    def has_keys(self) -> bool:
        return self.keys_file is not None or self.keys_env is not None


class Idempotency(Placement):
    """How long answers to requests with an `Idempotency-Key` are kept, in each copy of the HTTP front."""

    window_s: float = Field(default=600.0, gt=0)
    """Seconds in which the same key gets the same answer."""
    max_answers: int = Field(default=4096, ge=1)
    """Answers kept at once; the one not used for longest goes first."""
    max_bytes: int = Field(default=64 << 20, ge=1024)
    """Bytes of kept answers."""


class Observability(Placement):
    """What the service tells its operator. Never text of a prompt."""

    access_log: str = Field(default="stderr", min_length=1)
    """`stderr`, `stdout`, `off`, or the file that gets one JSON line per request; each node has its own."""
    metrics: bool = True
    """Export the `fuseline_` metrics with Ray's exporter."""

    @field_validator("access_log")
    @classmethod
    def _absolute(cls, target: str) -> str:
        # The copies of the front run in folders of their own.
        return target if target in ("stderr", "stdout", "off") else str(Path(target).expanduser().absolute())


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
    http: FrontPlacement = FrontPlacement()
    """How the HTTP front is laid out."""
    limits: Limits = Limits()
    security: Security = Security()
    idempotency: Idempotency = Idempotency()
    observability: Observability = Observability()
    run: Path | None = None
    """Result folder of the run that the models come from, for the page; None shows none."""
    app_name: str = Field(default="fuseline", pattern=MODEL_NAME)
    """Name of the Ray Serve application; another name lets two services share a cluster."""
    ready_timeout_s: float = Field(default=900.0, gt=0)
    """How long loading and warming up may take before the start is given up."""
    recheck_s: float = Field(default=60.0, gt=0)
    """How often every model is asked again, and every canary scored again, once the service is ready."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.chat and not self.rewards:
            raise ValueError("no model to serve: name at least one chat or reward model")
        both = self.chat.keys() & self.rewards.keys()
        if both:
            raise ValueError(f"{sorted(both)[0]!r} names a chat model and a reward model; use two names")
        for name in [*self.chat, *self.rewards]:
            check_name(name)
        self.http.check_target(self.limits.max_in_flight, "limits.max_in_flight")
        return self

    @model_validator(mode="after")
    def _public_needs_keys(self) -> Self:
        if self.security.public and not self.security.has_keys:
            raise ValueError(
                "a public service needs keys: name its keys with security.keys_file (--keys-file) or "
                "security.keys_env (--keys-env)"
            )
        if not self.security.public and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines: set security.public (--public) and give keys, "
                "or bind 127.0.0.1"
            )
        return self

    @classmethod
    def of(cls, *, chat: dict[str, Path] | None = None, rewards: dict[str, Path] | None = None, **fields: Any) -> Self:
        """Return the config that serves these folders with default placement."""
        return cls(
            chat={name: ChatModel(folder=folder) for name, folder in (chat or {}).items()},
            rewards={name: RewardModel(folder=folder) for name, folder in (rewards or {}).items()},
            **fields,
        )

    def resolved(self) -> Self:
        """Return the same config with absolute paths, which mean the same in every process of a node."""
        chat = {n: m.model_copy(update={"folder": m.folder.resolve()}) for n, m in self.chat.items()}
        rewards = {n: m.model_copy(update={"folder": m.folder.resolve()}) for n, m in self.rewards.items()}
        own: dict[str, Any] = {"run": self.run.resolve()} if self.run else {}
        if self.security.keys_file is not None:
            own["security"] = self.security.model_copy(update={"keys_file": self.security.keys_file.resolve()})
        return self.model_copy(update={"chat": chat, "rewards": rewards, **own})

    def gpus(self) -> float:
        """Return how many GPUs the models ask for from the start, where they run on GPUs."""
        engines = sum(m.engine.at_least * m.engine.tensor_parallel * m.engine.gpus for m in self.chat.values())
        return engines + sum(m.placement.at_least * m.placement.gpu_share for m in self.rewards.values())

    def runs_on_gpu(self, available: float) -> bool:
        """Return whether models run on GPUs in a cluster that has `available` ones.

        Raises:
            ClusterError: GPUs were asked for and are too few.
        """
        needed = self.gpus()
        if self.accelerator == "gpu" and available < needed:
            raise ClusterError(
                f"these models ask for {needed:g} GPU; this cluster has {available:g}; lower replicas or shares"
            )
        return self.accelerator != "cpu" and needed > 0 and available >= needed

    def check_folders(self) -> None:
        """Raise ModelError, naming the file, if a model folder cannot be served."""
        for model in [*self.chat.values(), *self.rewards.values()]:
            check_folder(model.folder)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_name(name: str) -> str:
    """Return `name` if clients can use it in a request and Ray in a deployment name, else raise InputError."""
    if re.fullmatch(MODEL_NAME, name) is None:
        raise InputError(f"model name {name!r}: use letters, digits, dot, dash and underscore, at most 96")
    return name
