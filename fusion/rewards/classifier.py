"""The tensors of a sequence classifier: loading without surprises, and scores that do not depend on neighbours.

Imported by `SequenceClassifier.load` only. Right padding with a mask, shapes from `buckets.py`, and the output
layer in float32 on the one position that the model's own forward would take for the conversation alone.
Legend: R rows of a pass, L padded length, H hidden size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

from fusion.errors import ModelError
from fusion.models import check_folder
from fusion.rewards.buckets import Batch, plan_batches
from fusion.sampling import Precision


class Classifier:
    """A loaded reward model on one device.

    Attributes:
        pad_token_id: that of the model's config; decides which position is read.
    """

    def __init__(self, model: Any, *, folder: Path, tokens_per_forward: int) -> None:
        self._trunk = model.base_model
        self._head_H = model.score.weight[0].detach().float()
        self._device = model.device
        self._folder = folder
        self._tokens_per_forward = tokens_per_forward
        config = model.config.get_text_config()
        self.pad_token_id: int | None = config.pad_token_id
        self._vocab_size: int = config.vocab_size
        self._max_positions: int = config.max_position_embeddings

    @classmethod
    def load(cls, folder: Path, *, dtype: Precision, device: str, tokens_per_forward: int) -> "Classifier":
        """Load a Hugging Face folder. Raises ModelError for anything that would give made-up scores."""
        check_folder(folder)
        model = _load_model(folder, dtype=dtype)
        return cls(model.eval().to(device), folder=folder, tokens_per_forward=tokens_per_forward)

    def limit(self, max_length: int | None) -> int:
        """Return the most tokens of a conversation: `max_length`, or the model's own limit."""
        if max_length is not None and max_length > self._max_positions:
            raise ModelError(
                f"max_length {max_length} is above the {self._max_positions} positions of "
                f"{self._folder / 'config.json'}; lower it"
            )
        return max_length or self._max_positions

    @torch.inference_mode()
    def score_ids(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Return one raw output per sequence, in order.

        Raises:
            ModelError: a token id is not in the model's embedding (tokenizer and model do not fit).
        """
        largest = max((max(row) for row in ids), default=0)
        if largest >= self._vocab_size:
            raise ModelError(
                f"{self._folder}: its tokenizer gives id {largest}, the model has {self._vocab_size}; they do not fit"
            )
        scores = [0.0] * len(ids)
        for batch in plan_batches([len(row) for row in ids], tokens_per_forward=self._tokens_per_forward):
            for item, score in zip(batch.items, self._forward(ids, batch).tolist(), strict=False):
                scores[item] = score
        return scores

    def _forward(self, ids: Sequence[Sequence[int]], batch: Batch) -> Tensor:
        ids_RL = torch.zeros(batch.num_rows, batch.length, dtype=torch.long)
        mask_RL = torch.zeros_like(ids_RL)
        mask_RL[:, 0] = 1  # a dummy row without any position to look at would give NaN
        last_R = torch.zeros(batch.num_rows, dtype=torch.long)
        for row, item in enumerate(batch.items):
            length = len(ids[item])
            ids_RL[row, :length] = torch.tensor(ids[item])
            mask_RL[row, :length] = 1
            last_R[row] = self._pooled_position(ids[item])
        out = self._trunk(input_ids=ids_RL.to(self._device), attention_mask=mask_RL.to(self._device), use_cache=False)
        rows_R = torch.arange(batch.num_rows, device=self._device)
        pooled_RH = out.last_hidden_state[rows_R, last_R.to(self._device)].float()
        # Row by row instead of a matrix product: the sum of a row then never depends on where it stands.
        return (pooled_RH * self._head_H).sum(-1)

    def _pooled_position(self, ids: Sequence[int]) -> int:
        """The position that transformers' forward reads for this conversation alone, without padding.

        It is the last one that is not the pad token, or the last one where the model names no pad token. That is
        also what such models were trained with, so where pad and end of turn are one token it is kept.
        """
        if self.pad_token_id is None:
            return len(ids) - 1
        return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != self.pad_token_id), 0)


def _load_model(folder: Path, *, dtype: Precision) -> Any:
    config_file = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{config_file} cannot be used: {_one_line(error)}") from error
    if config.num_labels != 1:
        named = json.loads(config_file.read_text(encoding="utf-8")).get("architectures")
        raise ModelError(
            f"{config_file}: a reward model has one output, this one ({', '.join(named or ['no architecture named'])}) "
            f"has {config.num_labels}; give a sequence-classification model with num_labels 1"
        )
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            config=config,
            dtype={"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by us, with the names
        )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded as a sequence classifier: {_one_line(error)}") from error
    _check_weights(folder, info)
    # Others pool elsewhere or have no layer named `score`; our own pooling would give made-up numbers.
    if not isinstance(model, GenericForSequenceClassification):
        raise ModelError(
            f"{folder / 'config.json'}: {type(model).__name__} is not a decoder with a linear output 'score', the "
            "only kind of sequence classifier supported; take another reward model or a python scorer"
        )
    return model


def _check_weights(folder: Path, info: dict[str, Any]) -> None:
    """Refuse a model whose file and code do not name the same weights: transformers would draw the missing ones."""
    kinds = {
        "missing_keys": "are missing and would be drawn at random",
        "unexpected_keys": "belong to no part of the model",
        "mismatched_keys": "have another shape than the model",
    }
    for kind, what in kinds.items():
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in info[kind])
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(
                f"{folder}: weights {', '.join(names[:3])}{more} {what}; this is not a finished reward model of the "
                "architecture in its config.json"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
