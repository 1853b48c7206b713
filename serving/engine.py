"""The seam to Ray Serve LLM: its vLLM deployment, asked for token ids in and pieces of text out.

The only file that touches `ray.llm` or vLLM. Importing it imports vLLM (seconds), so the HTTP front never
does. The stock chat path is not used: it renders with vLLM's own template code, while here prompts arrive
as ids from `fusion.chat`. The stop ids of the chat are the whole list, as in generation for training.
"""

import json
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.deployment import Application
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import CompletionRequest, ErrorResponse
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from serving.backends import Delta, Generation, SampledToken, merged
from serving.config import ChatModel
from serving.errors import ApiError
from serving.layout import ROOM, STEADY, scaling
from serving.schemas import ModelCard

logger = logging.getLogger(__name__)

_ENV = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Bound threads of several engines would share the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


MESSAGES_PER_S = 400
"""Messages that one engine sends to the front, all streams together; with one stream every token is a message."""


class ChatServer(LLMServer):
    """The stock engine deployment with one more method."""

    _num_streams = 0

    async def generate(self, generation: Generation) -> AsyncGenerator[list[Delta], None]:
        """Yield pieces as they are sampled; closing the stream aborts the request in the engine.

        The first piece goes out at once. With many streams the next ones are held back for some hundredths of a second
        and sent together: each message between two processes costs as much as making a token of a small model.

        Raises:
            ApiError: the engine refuses the request or has failed.
        """
        # The engine's own stream, not `self.completions`: that one holds back the first pieces too.
        # Any: the protocol says coroutine where the engine gives an async generator.
        engine: Any = self.engine
        held: list[Delta] = []
        sent_at = -math.inf
        self._num_streams += 1
        try:
            async with aclosing(engine.completions(_request(generation))) as stream:
                async for item in stream:
                    if isinstance(item, ErrorResponse) or not isinstance(item, str):
                        raise _refusal(item.model_dump())
                    held += _deltas(item, generation.num_logprobs)
                    now = time.monotonic()
                    if held and not generation.whole and now - sent_at >= self._num_streams / MESSAGES_PER_S:
                        yield merged(held)
                        held, sent_at = [], now
            if held:
                yield merged(held)
        except (EngineDeadError, EngineGenerateError):
            # Serve replaces the replica at its next health check; until then every request comes here.
            raise _failed() from None
        finally:
            self._num_streams -= 1

    async def num_unfinished(self) -> int:
        """Return how many sequences are in the engine; for tests and metrics."""
        engine: Any = self.engine
        return engine._engine_client.output_processor.get_num_unfinished_requests()


class _OneProcessEngine(VLLMEngine):
    """vLLM on CPU with its worker inside the engine core; Ray Serve LLM insists on one more process for it."""

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


class CpuChatServer(ChatServer):
    """A chat server that starts a third faster and takes 1 GB less on a small machine."""

    _default_engine_cls = _OneProcessEngine


def engine_deployment(card: ModelCard, model: ChatModel, *, name: str, on_gpu: bool) -> Application:
    """Return the deployment of one chat model under this name, to be bound into an application."""
    placement = model.engine
    arguments: dict[str, Any] = {
        "dtype": card.dtype,
        "max_model_len": card.max_tokens,
        "max_num_seqs": placement.max_num_seqs,
        "tensor_parallel_size": placement.tensor_parallel,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "disable_log_stats": not on_gpu,
        "max_logprobs": 20,
    }
    if on_gpu:
        arguments["gpu_memory_utilization"] = placement.gpu_memory_utilization
        worker: dict[str, float] = {"GPU": placement.gpus, **placement.resources}
        layout: dict[str, Any] = {}
    else:
        arguments["enforce_eager"] = True
        worker = {"CPU": placement.cpus, **placement.resources}
        layout = {"accelerator_config": {"kind": "cpu"}}
    layout["placement_group_config"] = {"bundles": [worker] * placement.tensor_parallel}
    config = LLMConfig(
        model_loading_config={"model_id": card.id, "model_source": str(model.folder)},
        engine_kwargs=arguments,
        runtime_env={"env_vars": _ENV if on_gpu else _ENV | _CPU_ENV},
        log_engine_metrics=False,
        deployment_config={
            **STEADY,
            **scaling(placement),
            "max_ongoing_requests": ROOM * placement.ongoing_requests,
            "ray_actor_options": {"num_cpus": 0},
        },
        **layout,
    )
    one_process = not on_gpu and placement.tensor_parallel == 1
    return build_llm_deployment(
        config,
        deployment_cls=CpuChatServer if one_process else ChatServer,
        override_serve_options={"name": name},
    )


def _request(generation: Generation) -> CompletionRequest:
    return CompletionRequest(
        request_id=generation.request_id,
        prompt=list(generation.prompt_ids),
        add_special_tokens=False,
        max_tokens=generation.max_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        n=generation.n,
        stop=list(generation.stop),
        stop_token_ids=list(generation.stop_token_ids),
        ignore_eos=True,
        # vLLM takes -1 for no seed at all.
        seed=2**63 - 1 if generation.seed == -1 else generation.seed,
        presence_penalty=generation.presence_penalty,
        frequency_penalty=generation.frequency_penalty,
        logprobs=generation.num_logprobs,
        return_tokens_as_token_ids=generation.num_logprobs is not None,
        return_token_ids=True,
        stream=True,
    )


def _deltas(event: str, num_logprobs: int | None) -> list[Delta]:
    """Return the pieces in one server-sent event of a completion stream."""
    data = event.strip().removeprefix("data: ")
    if data == "[DONE]":
        return []
    value = json.loads(data)
    if "error" in value:
        raise _refusal(value)
    return [_delta(choice, num_logprobs) for choice in value["choices"]]


def _delta(choice: dict[str, Any], num_logprobs: int | None) -> Delta:
    reason = choice["finish_reason"]
    if reason not in (None, "stop", "length"):
        raise ApiError("backend_unavailable", f"the engine ended the answer: {reason}")
    return Delta(
        index=choice["index"],
        text=choice["text"],
        num_tokens=len(choice.get("token_ids") or ()),
        finish_reason=reason,
        tokens=() if num_logprobs is None else _sampled(choice.get("logprobs"), num_logprobs),
    )


def _sampled(logprobs: dict[str, Any] | None, num_logprobs: int) -> tuple[SampledToken, ...]:
    if logprobs is None:
        return ()
    sampled = []
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        # vLLM adds the sampled token to the alternatives where it is not one of the most likely.
        likely = sorted((top or {}).items(), key=lambda item: -item[1])[:num_logprobs]
        alternatives = tuple((_token_id(key), float(value)) for key, value in likely)
        sampled.append(SampledToken(_token_id(token), float(logprob), alternatives))
    return tuple(sampled)


def _token_id(text: str) -> int:
    return int(text.removeprefix("token_id:"))


def _refusal(value: dict[str, Any]) -> ApiError:
    error = value.get("error") or value
    message = " ".join(str(error.get("message", "no reason given")).split())[:300]
    if int(error.get("code") or 500) < 500:
        return ApiError("invalid_request", f"the engine refuses the request: {message}")
    return _failed()


def _failed() -> ApiError:
    return ApiError("backend_unavailable", "the engine failed; try again")
