"""ArmoRM: a Llama that gives 19 rewards, and a gating network that weighs them by the prompt (arXiv 2406.12845).

This file is the config and what can be told without tensors; those are in `armorm_model.py`, imported by `load` alone.
The one idea: with r (J,) the rewards that a linear layer reads off the last token of a conversation, and g (J,) what the
gating network makes of one token of its prompt,

    score = sum_j g_j * (r @ T)_j        g = softmax(mlp(h_prompt) / temperature) * logit_scale

where T is a fixed matrix that takes the verbosity out of the other rewards.

What is known from where (RLHFlow/ArmoRM-Llama3-8B-v0.1, its `modeling_custom.py`, `config.json` and model card):
- the formula, ReLU between the layers of the gate, the names of the weights (`model.*`, `regression_layer.weight`,
  `reward_transform_matrix`, `gating.layers.N.weight` and `.bias`, `gating.logit_scale`) and the fields `num_objectives`
  (19), `gating_temperature` (10), `gating_hidden_dim` (1024) and `gating_n_hidden` (3), with these defaults;
- the prompt's token: the `<|eot_id|>` with which the *last* `<|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n`
  of the ids begins. So of several turns the gate reads the last one, and it sees none of the answer;
- the names of the objectives are those of the model card; the config has none.

Three things are done otherwise here, on purpose. A header that a user has typed is text (`fusion.chat`) and no place for
the gate. The last token is the last one that is not padding, as of all sequence classifiers here; the published code
reads the one before the *first* padding token, so that an answer with `[PAD]` in it would say where it is judged. And the
output layers are float32 at any `dtype`, where the published code takes the model's.

Inferred, since the tokenizer's files were not at hand: that the template is Llama 3's. One that writes another header is
refused; one that ends with an open assistant turn puts the last header behind the answer, and is read as published.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fusion.chat import Chat
from fusion.errors import ModelError
from fusion.models import ModelRef
from fusion.rewards.sequence_classifier import RewardFn, RewardModelSettings, ScoreRule, check_tokenizer
from fusion.rows import Message

ARCHITECTURE = "LlamaForRewardModelWithGating"

MARKERS = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
OPENING = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""What Llama 3's template writes between a question and its answer."""

OBJECTIVES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""The rewards of the published model, in the order of its outputs."""


class ArmoSettings(RewardModelSettings):
    """How an ArmoRM is run. `objectives` replaces its own gate by fixed weights; transformers is its only backend."""

    type: Literal["armorm"] = "armorm"

    @property
    def label(self) -> str:
        """Name that scored responses carry."""
        return self.type

    def rule(self, names: Sequence[str], *, name: str) -> "GatedRule":
        """Return how the outputs become the score. Raises ModelError for an objective that is none of `names`."""
        fixed = None if self.objectives is None else ScoreRule.of(names, self.objectives, name=name)
        return GatedRule(tuple(names), fixed)

    def load(self, folder: Path, *, device: str = "cpu") -> RewardFn:
        """Load the model in a local Hugging Face folder.

        Raises:
            ModelError: another architecture, weights missing, left over, pickled or of other shapes, a tokenizer or chat
                template that is not Llama 3's, an unknown objective, or a limit below `max_length`.
        """
        # torch and transformers take seconds to import; a recipe must load without them.
        from fusion.rewards.armorm_model import load_armorm

        chat = Chat.load(folder, self.chat)
        model = load_armorm(
            folder,
            opening_ids(chat, name=str(folder)),
            dtype=self.dtype,
            device=device,
            tokens_per_forward=self.tokens_per_forward,
        )
        rule, limit = self.rule(model.outputs[1:], name=str(folder / "config.json")), model.limit(self.max_length)
        check_tokenizer(chat, model.vocab_size, name=str(folder))
        return RewardFn(chat, model, rule, max_length=limit, tolerance=model.tolerance)


class ArmoRM(ArmoSettings):
    """An ArmoRM in a recipe."""

    model: ModelRef
    """The reward model."""

    @property
    def settings(self) -> ArmoSettings:
        """Everything but the model, which enters keys as an input of the stage."""
        return ArmoSettings(**{name: getattr(self, name) for name in ArmoSettings.model_fields})


@dataclasses.dataclass(frozen=True, slots=True)
class GatedRule:
    """The outputs are the score and then the rewards that it was made of."""

    names: tuple[str, ...]
    """Of the rewards."""
    fixed: ScoreRule | None
    """What makes the score instead of the gate; None = the gate."""

    def score(self, outputs: Sequence[float]) -> float:
        """Return the score; NaN where an output is not finite, even one that does not count."""
        if not all(map(math.isfinite, outputs)):
            return math.nan
        return outputs[0] if self.fixed is None else self.fixed.score(outputs[1:])

    def objectives(self, outputs: Sequence[float]) -> dict[str, float]:
        """Return the rewards by name, as the linear layer gives them, before the transform."""
        return dict(zip(self.names, outputs[1:], strict=True))


def is_armorm(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is that of an ArmoRM."""
    return ARCHITECTURE in (config.get("architectures") or ())


def objective_names(config: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Return the names of the rewards: those of `id2label` where it names as many, else the published ones.

    `LABEL_0`, which transformers writes where there are no names, is none.

    Raises:
        ModelError: `num_objectives` is no count, or another number of rewards, and no names for them.
    """
    count = config.get("num_objectives", len(OBJECTIVES))
    if type(count) is not int or count < 1:
        raise ModelError(f"{file}: num_objectives is {count!r}; it must be a whole number above 0")
    # Keys are text in a file, and not always in the order of the rewards: "10" comes before "2".
    named = {str(key): str(name) for key, name in (config.get("id2label") or {}).items()}
    names = [named[str(place)] for place in range(count) if str(place) in named]
    is_named = len(names) == len(named) == len(set(names)) == count
    if is_named and not all(re.fullmatch(r"LABEL_[0-9]+", name) for name in names):
        return tuple(names)
    if count == len(OBJECTIVES):
        return OBJECTIVES
    raise ModelError(f"{file}: num_objectives is {count}, and id2label does not name as many; add their names there")


def opening_ids(chat: Chat, *, name: str) -> tuple[int, ...]:
    """Return the ids of `OPENING`, and make sure that the chat template writes them before an answer.

    Raises:
        ModelError: the tokenizer lacks one of the markers, or the template writes something else.
    """
    known = chat.tokenizer.get_added_vocab()
    if lacking := [marker for marker in MARKERS if marker not in known]:
        raise ModelError(f"{name}: the tokenizer has no token {lacking[0]}; an ArmoRM needs that of Llama 3")
    opening = tuple(chat.tokenizer.encode(OPENING, add_special_tokens=False))
    ids, _ = chat.encode_conversation([Message("user", "a"), Message("assistant", "a")])
    if last_opening(ids, opening) is None:
        raise ModelError(f"{name}: the chat template does not write {OPENING!r} before an answer; take Llama 3's")
    return opening


def last_opening(ids: Sequence[int], opening: Sequence[int]) -> int | None:
    """Return where the last `opening` in `ids` begins, None where there is none.

    Example: of (5, 1, 2, 7, 1, 2, 8) and the opening (1, 2) it is 4.
    """
    wanted, length = tuple(opening), len(opening)
    return next((at for at in range(len(ids) - length, -1, -1) if tuple(ids[at : at + length]) == wanted), None)
