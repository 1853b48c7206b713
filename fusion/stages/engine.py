"""One vLLM engine in one process, fed by many threads and stepped by one.

Token ids in, token ids out: the engine sees no text, no template and no tokenizer. It is never drained:
rows of the next chunk join while the last rows of this one are still being decoded, which is what keeps
it as fast as one long `LLM.generate` call. Sampling parameters are given in full, and nothing of the
model's own generation_config.json is mixed in.

When the engine fails, the process is the unit that is thrown away: the reason is handed to whoever
listens, and the process exits. What that means for rows is the business of `fusion.stages.sampler`.
"""

import contextlib
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.errors import StageError
from fusion.sampling import Decoding, Precision
from fusion.stages.journal import Sampled

if TYPE_CHECKING:
    from vllm import SamplingParams

log = logging.getLogger(__name__)

ENGINE_DIED = 70
"""Exit status of a process whose engine failed."""

_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine core in this process: it starts in a third of the time
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of several engines would share the same cores
    "OMP_NUM_THREADS": "1",
}
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",  # models are local folders by now
}


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """All that one engine is started with."""

    folder: Path
    dtype: Precision
    seed: int
    max_model_len: int | None = None
    """Prompt and response tokens together; None takes it from the model."""
    max_num_seqs: int = 256
    tensor_parallel: int = 1
    gpu_memory_share: float = 0.9
    kv_cache_gib: float = 1.0
    """KV cache of an engine on CPUs."""
    cpu_threads: int = 1
    """OpenMP threads of an engine on CPUs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One row for the engine."""

    row: int
    """Index of the row in its chunk; comes back in `Sampled`."""
    row_id: str
    token_ids: tuple[int, ...]
    decoding: Decoding
    seed: int


class Results:
    """What the engine gives back to one caller: gathered row by row, taken in heaps.

    A caller that woke up for every row would take the interpreter from the stepping thread each time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all = threading.Event()
        self._given: list[Sampled] = []
        self._outstanding = 0

    @property
    def missing(self) -> int:
        """Number of rows that are expected and have not been taken yet."""
        with self._lock:
            return self._outstanding + len(self._given)

    def expect(self, rows: int) -> None:
        """Say that so many more rows are about to be handed to the engine."""
        with self._lock:
            self._outstanding += rows
            if self._outstanding:
                self._all.clear()

    def put(self, sampled: Sampled) -> None:
        with self._lock:
            self._given.append(sampled)
            self._outstanding -= 1
            if not self._outstanding:
                self._all.set()

    def take(self, *, timeout: float) -> list[Sampled]:
        """Wait until every expected row is there, at most `timeout` seconds, and take those that are."""
        self._all.wait(timeout)
        with self._lock:
            taken, self._given = self._given, []
        return taken


def sampling_params(decoding: Decoding, *, seed: int, stop_ids: Sequence[int], max_tokens: int) -> "SamplingParams":
    """Return vLLM's parameters of one row: those of `decoding` and nothing from anywhere else."""
    from vllm import SamplingParams  # worker side: importing vLLM takes seconds and needs its CPU or GPU build
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        seed=seed,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        min_p=decoding.min_p,
        repetition_penalty=decoding.repetition_penalty,
        presence_penalty=decoding.presence_penalty,
        frequency_penalty=decoding.frequency_penalty,
        max_tokens=max_tokens,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,  # the stop ids are the whole list; the engine must not add what it thinks is an end
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def engine_arguments(settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Return vLLM's engine arguments; everything else stays at vLLM's defaults."""
    arguments: dict[str, Any] = {
        "model": str(settings.folder),
        "dtype": settings.dtype,
        "seed": settings.seed % 2**32,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel,
        "distributed_executor_backend": "mp" if settings.tensor_parallel > 1 else "uni",
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "worker_extension_cls": "fusion.stages.lifeline.Lifeline",
        "disable_log_stats": True,
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
            # A prompt that is prefilled in pieces has its draws of all but the last piece taken back, and
            # vLLM 0.32 cannot take back the draws of a seeded row on CPUs: the whole engine would fail.
            "enable_chunked_prefill": False,
        }
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_share
    return arguments


def prepare(settings: EngineSettings) -> bool:
    """Set this process up for an engine that the calling thread will start and step; return whether it runs on CPUs.

    vLLM's build decides that, not Ray's resources: a local cluster may have GPUs in its books only.
    """
    os.environ.update(_ENVIRONMENT)
    # Worker side: importing vLLM takes seconds, needs its CPU or GPU build, and reads the environment.
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        import torch

        os.environ.update(_CPU_ENVIRONMENT, OMP_NUM_THREADS=str(settings.cpu_threads))
        torch.set_num_threads(settings.cpu_threads)  # OpenMP has read its environment long ago
    return on_cpu


class Engine:
    """A started engine. `submit` may be called from any thread; what comes back arrives in the `Results` given to it.

    Attributes:
        max_model_len: prompt and response tokens together that fit.
        facts: what the engine runs with, for the manifest.
    """

    def __init__(self, settings: EngineSettings, *, stop_ids: Sequence[int], on_death: Callable[[str], None]) -> None:
        """Start the engine and its thread. `on_death` gets the reason just before this process exits.

        Raises:
            StageError: the engine cannot start: model, memory or settings.
        """
        self._stop_ids = tuple(stop_ids)
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[tuple[Request, Results]] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[Request, Results]] = {}
        self._number = 0
        started: Future[None] = Future()
        threading.Thread(target=self._live, args=(settings, started), name="engine", daemon=True).start()
        started.result()

    def submit(self, requests: Sequence[Request], results: Results) -> None:
        """Hand rows to the engine. One `Sampled` per row is put into `results`, in the order they finish."""
        results.expect(len(requests))
        for request in requests:
            self._inbox.put((request, results))

    def _live(self, settings: EngineSettings, started: "Future[None]") -> None:
        """Start and step in one thread: OpenMP keeps a pool of threads for each thread that has used it, and
        two pools on the same cores make each wait for the other."""
        try:
            self._begin(settings)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        self._run()

    def _begin(self, settings: EngineSettings) -> None:
        begun = time.monotonic()
        on_cpu = prepare(settings)
        arguments = engine_arguments(settings, on_cpu=on_cpu)
        self._engine = _start(arguments, settings)
        self._engine.collective_rpc("watch_owner", args=(os.getpid(),))
        self.max_model_len: int = self._engine.model_config.max_model_len
        self._vocab_size: int = self._engine.model_config.get_vocab_size()
        # Raised for a row that vLLM checks and does not take in; not a ValueError.
        self._refusals = _refusals()
        self.facts = {
            "device": "cpu" if on_cpu else _device_name(),
            "arguments": {k: v for k, v in arguments.items() if k != "model"} | {"max_model_len": self.max_model_len},
            "start_seconds": round(time.monotonic() - begun, 1),
        }

    def _run(self) -> None:
        """Take in and step for ever; the one thread that touches the engine."""
        try:
            while True:
                self._take_in()
                for output in self._engine.step():
                    if output.finished:
                        self._give_back(output)
        except BaseException as error:
            log.exception("the engine failed")
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            with contextlib.suppress(Exception):
                self._on_death(text)
        finally:
            # A half-dead engine answers nothing or nonsense. Ray makes a new process, the journal says for whom.
            os._exit(ENGINE_DIED)

    def _take_in(self) -> None:
        """Add all rows that wait; sleep until there is one where the engine has nothing to do."""
        if not self._waiting:
            self._add(*self._inbox.get())
        while True:
            try:
                self._add(*self._inbox.get_nowait())
            except queue.Empty:
                if self._waiting:
                    return
                self._add(*self._inbox.get())

    def _add(self, request: Request, results: Results) -> None:
        room = self.max_model_len - len(request.token_ids)
        params = sampling_params(
            request.decoding,
            seed=request.seed,
            stop_ids=self._stop_ids,
            max_tokens=max(1, min(request.decoding.max_tokens, room)),
        )
        self._number += 1
        request_id = f"{self._number}"
        if max(request.token_ids, default=0) >= self._vocab_size:
            # Without a tokenizer vLLM does not look, and its embedding would read foreign memory.
            error = f"token id {max(request.token_ids)} is not in the model's vocabulary of {self._vocab_size}"
            results.put(Sampled(request.row, (), "", error=error))
            return
        try:
            self._engine.add_request(request_id, {"prompt_token_ids": list(request.token_ids)}, params)
        except self._refusals as error:
            results.put(Sampled(request.row, (), "", error=" ".join(str(error).split())[:500]))
            return
        self._waiting[request_id] = (request, results)

    def _give_back(self, output: Any) -> None:
        request, results = self._waiting.pop(output.request_id)
        (sample,) = output.outputs
        results.put(Sampled(request.row, tuple(sample.token_ids), str(sample.finish_reason)))


def _first_token(engine: Any) -> None:
    """Make one token: an engine that cannot is not started, and the first rows do not pay for what is lazy."""
    from vllm import SamplingParams  # worker side, as above

    engine.add_request("first", {"prompt_token_ids": [0]}, SamplingParams(max_tokens=1, seed=0, detokenize=False))
    while engine.has_unfinished_requests():
        engine.step()


def _device_name() -> str:
    from vllm.platforms import current_platform  # worker side, as above

    return current_platform.get_device_name()


def _refusals() -> tuple[type[Exception], ...]:
    from vllm.exceptions import VLLMValidationError  # worker side, as above

    return (VLLMValidationError, ValueError)


def _start(arguments: dict[str, Any], settings: EngineSettings) -> Any:
    from pydantic import ValidationError
    from vllm import EngineArgs, LLMEngine  # worker side, as above
    from vllm.usage.usage_lib import UsageContext

    try:
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
        _first_token(engine)
        return engine
    except ValidationError as error:
        reason = "; ".join(e["msg"] for e in error.errors())
    except Exception as error:
        log.exception("the engine of %s did not start", settings.folder)
        reason = f"{type(error).__name__}: {error}"
    raise StageError(
        f"the vLLM engine for {settings.folder} cannot start: {' '.join(reason.split())[:400]}; check the model "
        "folder, max_model_len, and in the placement kv_cache_gib, gpu_memory_share and tensor_parallel"
    )
