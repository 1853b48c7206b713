"""Reward models of the usual form: a decoder with one linear output, `...ForSequenceClassification`.

This file is the config and the reading of conversations; the tensors are in `classifier.py`, which is
imported only by `load`, so that recipes load without torch. Pipeline and HTTP score through the same `RewardFn`.
The one idea: a score is a function of the conversation and of this config, never of its neighbours.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from fusion.chat import Chat, ChatConfig
from fusion.config import Config
from fusion.errors import InputError
from fusion.models import ModelRef
from fusion.rewards.common import RewardScore
from fusion.rows import Message
from fusion.sampling import Precision

Truncation = Literal["error", "left", "right"]
"""What happens to a conversation above the limit: refused, or its head (left) or tail (right) cut off."""


class ClassifierSettings(Config):
    """How a reward model is run; which one it is, is said elsewhere (`SequenceClassifier.model`, or a folder)."""

    type: Literal["sequence_classifier"] = "sequence_classifier"
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of a conversation; null takes the model's own limit."""
    truncation: Literal["quarantine", "left", "right"] = "quarantine"
    """What the pipeline does with longer ones: refuse the row, or cut off the head or the tail and say so."""
    dtype: Precision = "float32"
    """Precision of weights and activations; the output layer is always float32."""
    tokens_per_forward: int = Field(default=4096, ge=1)
    """Tokens, padding included, in one forward pass; decides the shapes, and with them the last bits of scores."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What the pipeline runs it with. vllm is faster on GPUs, but scores are equal to about 1e-5 only."""
    chat: ChatConfig = ChatConfig()
    """How conversations are rendered for this model."""

    @property
    def label(self) -> str:
        """Name that scored responses carry."""
        return self.type

    def load(self, folder: Path, *, device: str = "cpu") -> "RewardFn":
        """Load the model in a local Hugging Face folder with transformers, the backend whose bits can be relied on.

        Raises:
            ModelError: no usable reward model: weights missing, left over or of other shapes, not exactly
                one output, another architecture, or a limit below `max_length`.
        """
        # torch and transformers take seconds to import; a recipe must load without them.
        from fusion.rewards.classifier import Classifier

        model = Classifier.load(folder, dtype=self.dtype, device=device, tokens_per_forward=self.tokens_per_forward)
        return RewardFn(Chat.load(folder, self.chat), model, max_length=model.limit(self.max_length))


class SequenceClassifier(ClassifierSettings):
    """A reward model in a recipe."""

    model: ModelRef
    """The reward model."""

    @property
    def settings(self) -> ClassifierSettings:
        """Everything but the model, which enters keys as an input of the stage."""
        return ClassifierSettings(**{name: getattr(self, name) for name in ClassifierSettings.model_fields})


class TokenScorer(Protocol):
    """A loaded model: token ids in, raw scores out."""

    def score_ids(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Return one raw output per sequence, in order; it may be NaN or infinite."""
        ...


class RewardFn:
    """A loaded reward model with its chat template."""

    def __init__(self, chat: Chat, model: TokenScorer, *, max_length: int) -> None:
        self.chat = chat
        self.max_length = max_length
        self._model = model

    def score(
        self, conversations: Sequence[Sequence[Message]], *, truncation: Truncation = "error"
    ) -> list[RewardScore]:
        """Return one result per conversation, in order; each ends with the assistant message to score.

        A conversation that the template refuses, or that is too long under `truncation="error"`, gets a
        result with an error code; its neighbours are scored all the same.
        """
        results: list[RewardScore | None] = [None] * len(conversations)
        sound: list[int] = []
        ids: list[tuple[int, ...]] = []
        num_tokens: list[int] = []
        for place, messages in enumerate(conversations):
            try:
                whole, _ = self.chat.encode_conversation(messages)
            except InputError as error:
                results[place] = RewardScore.failed("invalid_roles", str(error))
                continue
            if len(whole) > self.max_length and truncation == "error":
                text = f"{len(whole)} tokens > {self.max_length}"
                results[place] = RewardScore.failed("context_length_exceeded", text, num_tokens=len(whole))
                continue
            sound.append(place)
            ids.append(self._cut(whole, truncation))
            num_tokens.append(len(whole))
        for place, tokens, used, raw in zip(sound, num_tokens, ids, self._model.score_ids(ids), strict=True):
            if math.isfinite(raw):
                results[place] = RewardScore(raw, tokens, truncated=len(used) < tokens)
            else:
                results[place] = RewardScore.failed("non_finite_score", f"the model gave {raw}", num_tokens=tokens)
        return [result for result in results if result is not None]

    def _cut(self, ids: tuple[int, ...], truncation: Truncation) -> tuple[int, ...]:
        if len(ids) <= self.max_length:
            return ids
        if truncation == "right":
            return ids[: self.max_length]
        # A decoder that has never been without its first BOS goes astray when the cut takes it.
        bos = ids[:1] if ids[0] == self.chat.tokenizer.bos_token_id else ()
        return bos + ids[len(ids) - self.max_length + len(bos) :]
