"""Reward models of the usual form: a decoder with a linear output layer, `...ForSequenceClassification`.

This file is the config and the reading of conversations; the tensors are in `classifier.py`, which is
imported only by `load`, so that recipes load without torch. Pipeline and HTTP score through the same `RewardFn`.
The one idea: a score is a function of the conversation and of this config, never of its neighbours.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from fusion.chat import Chat, ChatConfig
from fusion.config import Config
from fusion.errors import InputError, ModelError
from fusion.models import ModelRef
from fusion.rewards.common import RewardScore, Tokens
from fusion.rows import Message
from fusion.sampling import Precision

Truncation = Literal["error", "left", "right"]
"""What happens to a conversation above the limit: refused, or its head (left) or tail (right) cut off."""


class RewardModelSettings(Config):
    """How a reward model is run, of whatever family; which one it is, is said elsewhere (`model`, or a folder)."""

    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of a conversation; null takes the model's own limit."""
    truncation: Literal["quarantine", "left", "right"] = "quarantine"
    """What the pipeline does with longer ones: refuse the row, or cut off the head or the tail and say so."""
    dtype: Precision = "float32"
    """Precision of weights and activations; the output layer is always float32."""
    tokens_per_forward: int = Field(default=4096, ge=1)
    """Tokens, padding included, in one forward pass; decides the shapes, and with them the last bits of scores."""
    objectives: dict[str, float] | None = Field(default=None, min_length=1)
    """Of a model with several outputs, by the names in its `id2label`: the score is the sum of these outputs times these
    weights. null for a model with one output, or one that weighs its outputs itself (armorm)."""
    chat: ChatConfig = ChatConfig()
    """How conversations are rendered for this model."""


class ClassifierSettings(RewardModelSettings):
    """How a sequence classifier is run."""

    type: Literal["sequence_classifier"] = "sequence_classifier"
    backend: Literal["transformers", "vllm"] = "transformers"
    """What the pipeline runs it with. vllm is faster on GPUs, but scores are equal to about 1e-5 only."""

    @property
    def label(self) -> str:
        """Name that scored responses carry."""
        return self.type

    def rule(self, names: Sequence[str], *, name: str) -> "ScoreRule":
        """Return how the outputs of these names become the score. Raises ModelError as `ScoreRule.of`."""
        return ScoreRule.of(names, self.objectives, name=name)

    def load(self, folder: Path, *, device: str = "cpu") -> "RewardFn":
        """Load the model in a local Hugging Face folder with transformers, the backend whose bits can be relied on.

        Raises:
            ModelError: no usable reward model: weights missing, left over or of other shapes, not exactly
                one output and no `objectives`, another architecture, a limit below `max_length`, or the
                tokenizer of another model.
        """
        # torch and transformers take seconds to import; a recipe must load without them.
        from fusion.rewards.classifier import Classifier

        model = Classifier.load(folder, dtype=self.dtype, device=device, tokens_per_forward=self.tokens_per_forward)
        rule = self.rule(model.outputs, name=str(folder / "config.json"))
        chat, limit = Chat.load(folder, self.chat), model.limit(self.max_length)
        check_tokenizer(chat, model.vocab_size, name=str(folder))
        return RewardFn(chat, model, rule, max_length=limit, tolerance=model.tolerance)


class SequenceClassifier(ClassifierSettings):
    """A reward model in a recipe."""

    model: ModelRef
    """The reward model."""

    @property
    def settings(self) -> ClassifierSettings:
        """Everything but the model, which enters keys as an input of the stage."""
        return ClassifierSettings(**{name: getattr(self, name) for name in ClassifierSettings.model_fields})


class TokenScorer(Protocol):
    """A loaded model: token ids in, raw outputs out.

    It is given only ids without a `fault`.
    """

    def fault(self, ids: Sequence[int]) -> str | None:
        """Return why these ids cannot be scored, None where they can."""
        ...

    def score_ids(self, conversations: Sequence[Tokens]) -> list[tuple[float, ...]]:
        """Return the raw outputs of each conversation, in order; they may be NaN or infinite."""
        ...


def check_tokenizer(chat: Chat, vocab_size: int, *, name: str) -> None:
    """Raise ModelError where even a plain question and its answer have an id that the embedding lacks."""
    ids, _ = chat.encode_conversation([Message("user", "a"), Message("assistant", "a")])
    if fault := outside(ids, vocab_size):
        raise ModelError(f"{name}: {fault}")


def outside(ids: Sequence[int], vocab_size: int) -> str | None:
    """Return what is wrong where an id is not in the embedding, e.g. of a token that was added without a resize."""
    largest = max(ids)
    return (
        f"the tokenizer gives id {largest}, the model has {vocab_size}; they do not fit"
        if largest >= vocab_size
        else None
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ScoreRule:
    """How the outputs of a model become its score: their weighted sum.

    Example: outputs ("helpful", "verbose") with weights (1.0, -0.5) that give (3.0, 2.0) score 2.0.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, names: Sequence[str], objectives: Mapping[str, float] | None, *, name: str) -> "ScoreRule":
        """Return the rule for a model with these outputs.

        Raises:
            ModelError: several outputs and nothing said of them, or an objective that is none of them.
        """
        if objectives is None:
            if len(names) != 1:
                raise ModelError(
                    f"{name}: this model has {len(names)} outputs ({', '.join(names)}); say which make the score, "
                    f"e.g. objectives: {{{names[0]}: 1.0}} (fuseline score: --objective {names[0]}=1.0)"
                )
            return cls(tuple(names), (1.0,))
        if unknown := sorted(set(objectives) - set(names)):
            raise ModelError(f"{name}: no output is named {unknown[0]!r}; there are: {', '.join(names)}")
        if len(set(names)) != len(names):
            raise ModelError(f"{name}: two outputs have one name ({', '.join(names)}); mend id2label")
        return cls(tuple(names), tuple(objectives.get(each, 0.0) for each in names))

    def score(self, outputs: Sequence[float]) -> float:
        """Return the score; NaN or infinite where an output is, even one of weight 0."""
        if not all(map(math.isfinite, outputs)):
            return math.nan
        return (
            outputs[0]
            if self.weights == (1.0,)
            else math.fsum(w * x for w, x in zip(self.weights, outputs, strict=True))
        )

    def objectives(self, outputs: Sequence[float]) -> dict[str, float]:
        """Return the outputs by name; none of a model that has only one."""
        return dict(zip(self.names, outputs, strict=True)) if len(self.names) > 1 else {}


class Rule(Protocol):
    """How the raw outputs of a model become its score."""

    def score(self, outputs: Sequence[float]) -> float:
        """Return the score; not finite where an output is not."""
        ...

    def objectives(self, outputs: Sequence[float]) -> dict[str, float]:
        """Return the named parts that are kept with the score."""
        ...


class RewardFn:
    """A loaded reward model with its chat template.

    Attributes:
        tolerance: by how much a score may move with its neighbours, as tried out at load; 0 = not by a bit, None = unknown.
    """

    def __init__(
        self, chat: Chat, model: TokenScorer, rule: Rule, *, max_length: int, tolerance: float | None = None
    ) -> None:
        self.chat = chat
        self.max_length = max_length
        self.tolerance = tolerance
        self.rule = rule
        self._model = model

    def score(
        self, conversations: Sequence[Sequence[Message]], *, truncation: Truncation = "error"
    ) -> list[RewardScore]:
        """Return one result per conversation, in order; each ends with the assistant message to score.

        A conversation that the template refuses, that is too long under `truncation="error"`, or that the model has
        a fault to find with, gets a result with an error code; its neighbours are scored all the same.
        """
        results: list[RewardScore | None] = [None] * len(conversations)
        sound: list[int] = []
        asked: list[Tokens] = []
        num_tokens: list[int] = []
        for place, messages in enumerate(conversations):
            try:
                whole = self._tokens(messages)
            except InputError as error:
                results[place] = RewardScore.failed("invalid_roles", str(error))
                continue
            if len(whole) > self.max_length and truncation == "error":
                text = f"{len(whole)} tokens > {self.max_length}"
                results[place] = RewardScore.failed("context_length_exceeded", text, num_tokens=len(whole))
                continue
            used = self._cut(whole, truncation)
            if fault := self._model.fault(used.ids):
                # Where the cut has made the fault, it is the length that is to blame, and not the model.
                cut = used is not whole and self._model.fault(whole.ids) is None
                code = "context_length_exceeded" if cut else "scorer_error"
                said = f"cut to {len(used)} of {len(whole)} tokens, {fault}" if cut else fault
                results[place] = RewardScore.failed(code, said, num_tokens=len(whole))
                continue
            sound.append(place)
            asked.append(used)
            num_tokens.append(len(whole))
        for place, tokens, used, outputs in zip(sound, num_tokens, asked, self._model.score_ids(asked), strict=True):
            score = self.rule.score(outputs)
            if math.isfinite(score):
                objectives = self.rule.objectives(outputs)
                results[place] = RewardScore(score, tokens, truncated=len(used) < tokens, objectives=objectives)
            else:
                said = ", ".join(map(str, outputs))
                results[place] = RewardScore.failed("non_finite_score", f"the model gave {said}", num_tokens=tokens)
        return [result for result in results if result is not None]

    def _tokens(self, messages: Sequence[Message]) -> Tokens:
        """Return the ids of a conversation, cut where its answer begins; at least one id stands before the cut."""
        ids, is_answer = self.chat.encode_conversation(messages)
        start = max(1, next((i for i, own in enumerate(is_answer) if own), len(ids)))
        return Tokens(ids[:start], ids[start:])

    def _cut(self, tokens: Tokens, truncation: Truncation) -> Tokens:
        over = len(tokens) - self.max_length
        if over <= 0:
            return tokens
        ids, start = tokens.ids, len(tokens.prompt)
        if truncation == "right":
            ids = ids[: self.max_length]
            return Tokens(ids[:start], ids[start:])
        # A decoder that has never been without its first BOS goes astray when the cut takes it.
        bos = ids[:1] if ids[0] == self.chat.tokenizer.bos_token_id else ()
        ids = bos + ids[over + len(bos) :]
        start = max(1, start - over)
        return Tokens(ids[:start], ids[start:])
