"""Reward models run by vLLM instead of transformers: faster on GPUs, equal to about 1e-5 and not to the bit.

vLLM gathers rows as they come, so the last bits of a score depend on its neighbours; that is why
transformers is the default and the backend is a part of the key. The weights are checked first by the same
code as there, because vLLM takes a checkpoint with left-over weights without a word.
"""

import gc
from collections.abc import Sequence
from pathlib import Path

from fusion.chat import Chat
from fusion.rewards import ClassifierSettings, RewardFn
from fusion.rewards.common import Tokens
from fusion.rewards.sequence_classifier import ScoreRule, check_tokenizer, outside
from fusion.stages.engine import EngineSettings, engine_arguments, prepare


def load_with_vllm(settings: ClassifierSettings, folder: Path, *, num_threads: int) -> RewardFn:
    """Return the reward model of a local folder on a vLLM engine in this process.

    Raises:
        ModelError: as `ClassifierSettings.load`.
    """
    from fusion.rewards.classifier import Classifier  # torch, on the worker side only

    checked = Classifier.load(
        folder, dtype=settings.dtype, device="cpu", tokens_per_forward=settings.tokens_per_forward
    )
    max_length, pad_token_id = checked.limit(settings.max_length), checked.pad_token_id
    rule = ScoreRule.of(checked.outputs, settings.objectives, name=str(folder / "config.json"))
    chat, vocab_size = Chat.load(folder, settings.chat), checked.vocab_size
    check_tokenizer(chat, vocab_size, name=str(folder))
    del checked
    gc.collect()  # a second copy of an 8B model would stay in memory beside the engine's
    engine = EngineSettings(folder, settings.dtype, seed=0, max_model_len=max_length, cpu_threads=num_threads)
    model = VllmClassifier(engine, pad_token_id, vocab_size=vocab_size)
    return RewardFn(chat, model, rule, max_length=max_length)


class VllmClassifier:
    """A vLLM engine that gives the raw output of a sequence classifier."""

    def __init__(self, settings: EngineSettings, pad_token_id: int | None, *, vocab_size: int) -> None:
        on_cpu = prepare(settings)
        from vllm import LLM  # worker side: importing vLLM takes seconds and needs its CPU or GPU build

        arguments = engine_arguments(settings, on_cpu=on_cpu)
        # The pooling runner reads the tokenizer even for token ids; prefixes of other rows' caches round otherwise.
        arguments |= {"runner": "pooling", "skip_tokenizer_init": False, "enable_prefix_caching": False}
        self._engine = LLM(**arguments)
        self._pad_token_id = pad_token_id
        self._vocab_size = vocab_size

    def fault(self, ids: Sequence[int]) -> str | None:
        """Return what is wrong where an id is not in the embedding."""
        return outside(ids, self._vocab_size)

    def score_ids(self, conversations: Sequence[Tokens]) -> list[tuple[float, ...]]:
        """Return the raw outputs of each conversation, in order."""
        if not conversations:
            return []
        from vllm import PoolingParams

        outputs = self._engine.classify(
            [{"prompt_token_ids": self._up_to_pooled(tokens.ids)} for tokens in conversations],
            pooling_params=PoolingParams(use_activation=False),
            use_tqdm=False,
        )
        return [tuple(output.outputs.probs) for output in outputs]

    def _up_to_pooled(self, ids: Sequence[int]) -> list[int]:
        """Cut pad tokens off the end: vLLM pools the last position, transformers the last that is not padding."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad_token_id:
            end -= 1
        return list(ids[:end])
