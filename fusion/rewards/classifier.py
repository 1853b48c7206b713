"""The tensors of a sequence classifier: scores that do not depend on neighbours.

Imported by `SequenceClassifier.load` only. Two kinds of passes: `shared` (a prompt once for all its responses) and
`padded` (`buckets.py`: shapes that the length of a conversation alone decides). Which one a model gets is tried out when
it is loaded: shared passes must give the scores of the model's own forward, and on CPU the same bits whatever else is in
the pass. The output layer is in float32 on the one position that the model's own forward would take.
Legend: R rows of a pass, L padded length, S conversations, H hidden size, O outputs.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fusion.errors import ModelError
from fusion.models import check_folder
from fusion.packed import attention
from fusion.packed.last_mlp import LastMlp
from fusion.rewards.buckets import Batch, plan_batches
from fusion.rewards.common import Tokens
from fusion.rewards.loading import load_model
from fusion.rewards.shared import SharedPass, plan_passes
from fusion.sampling import Precision

log = logging.getLogger(__name__)

Passes = Literal["shared", "padded"]


class Classifier:
    """A loaded reward model on one device.

    Attributes:
        pad_token_id: that of the model's config; decides which position is read.
        outputs: names of its outputs, from the config's `id2label`.
        vocab_size: how many ids its embedding has.
        passes: the kind of passes that it is run with.
        tolerance: by how much the scores of the probe moved with their neighbours; 0 = not by a bit.
    """

    def __init__(self, model: Any, *, folder: Path, tokens_per_forward: int) -> None:
        self._model = model
        self._trunk = model.base_model
        self._head_OH = model.score.weight.detach().float()
        self._device = model.device
        self._folder = folder
        self._tokens_per_forward = tokens_per_forward
        config = model.config.get_text_config()
        self.pad_token_id: int | None = config.pad_token_id
        self.outputs = tuple(str(model.config.id2label[i]) for i in range(len(self._head_OH)))
        self.vocab_size: int = config.vocab_size
        self._max_positions: int = config.max_position_embeddings
        self._own_attention = attention.own_attention(config.to_dict())
        self._last_mlp = LastMlp.of(self._trunk)
        self._skips_unread = False
        self.tolerance = 0.0
        self.use("padded")

    @classmethod
    def load(cls, folder: Path, *, dtype: Precision, device: str, tokens_per_forward: int) -> "Classifier":
        """Load a Hugging Face folder. Raises ModelError for anything that would give made-up scores."""
        check_folder(folder)
        model = load_model(folder, dtype=dtype)
        found = cls(model.eval().to(device), folder=folder, tokens_per_forward=tokens_per_forward)
        choose_passes(found, name=str(folder))
        return found

    def use(self, passes: Passes, *, skips_unread: bool = False) -> None:
        """Take this kind of passes; `skips_unread` leaves tokens that nothing reads out of the last feed-forward block."""
        self.passes: Passes = passes
        self._skips_unread = skips_unread
        if self._last_mlp is not None:
            self._last_mlp.needed = None
        self._model.set_attn_implementation(attention.NAME if passes == "shared" else self._own_attention)

    def limit(self, max_length: int | None) -> int:
        """Return the most tokens of a conversation: `max_length`, or the model's own limit."""
        if max_length is not None and max_length > self._max_positions:
            raise ModelError(
                f"max_length {max_length} is above the {self._max_positions} positions of "
                f"{self._folder / 'config.json'}; lower it"
            )
        return max_length or self._max_positions

    @torch.inference_mode()
    def score_ids(self, conversations: Sequence[Tokens]) -> list[tuple[float, ...]]:
        """Return the raw outputs (O,) of each conversation, in order; all ids are below `vocab_size`."""
        found: list[tuple[float, ...]] = [()] * len(conversations)
        pooled = [self._pooled_position(tokens.ids) for tokens in conversations]
        if self.passes == "shared":
            for each in plan_passes(conversations, pooled, tokens_per_forward=self._tokens_per_forward):
                for item, outputs in zip(each.items, self._forward_shared(each).tolist(), strict=True):
                    found[item] = tuple(outputs)
            return found
        for batch in plan_batches([len(c) for c in conversations], tokens_per_forward=self._tokens_per_forward):
            for item, outputs in zip(batch.items, self._forward_padded(conversations, pooled, batch), strict=True):
                found[item] = outputs
        return found

    def _forward_shared(self, each: SharedPass) -> Tensor:
        """Return (S, O) float32."""
        if self._last_mlp is not None:
            self._last_mlp.needed = each.needed_N.to(self._device) if self._skips_unread else None
        hidden_1TH = self._trunk(
            input_ids=each.ids_1T.to(self._device),
            position_ids=each.positions_1T.to(self._device),
            attention_mask=None,
            use_cache=False,
            trees=each.trees,
        ).last_hidden_state
        return self._head(hidden_1TH[0, each.read_S.to(self._device)])

    def _forward_padded(
        self, conversations: Sequence[Tokens], pooled: Sequence[int], batch: Batch
    ) -> list[tuple[float, ...]]:
        ids_RL = torch.zeros(batch.num_rows, batch.length, dtype=torch.long)
        mask_RL = torch.zeros_like(ids_RL)
        mask_RL[:, 0] = 1  # a dummy row without any position to look at would give NaN
        last_R = torch.zeros(batch.num_rows, dtype=torch.long)
        for row, item in enumerate(batch.items):
            ids = conversations[item].ids
            ids_RL[row, : len(ids)] = torch.tensor(ids)
            mask_RL[row, : len(ids)] = 1
            last_R[row] = pooled[item]
        out = self._trunk(input_ids=ids_RL.to(self._device), attention_mask=mask_RL.to(self._device), use_cache=False)
        rows_R = torch.arange(batch.num_rows, device=self._device)
        outputs_RO = self._head(out.last_hidden_state[rows_R, last_R.to(self._device)])
        return [tuple(outputs) for outputs in outputs_RO[: len(batch.items)].tolist()]

    def _head(self, pooled_SH: Tensor) -> Tensor:
        # Row by row instead of a matrix product: the sum of a row then never depends on where it stands.
        return (pooled_SH.float()[:, None] * self._head_OH).sum(-1)

    def _pooled_position(self, ids: Sequence[int]) -> int:
        """The position that transformers' forward reads for this conversation alone, without padding.

        It is the last one that is not the pad token, or the last one where the model names no pad token. That is
        also what such models were trained with, so where pad and end of turn are one token it is kept.
        """
        if self.pad_token_id is None:
            return len(ids) - 1
        return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != self.pad_token_id), 0)

    @torch.inference_mode()
    def plain_outputs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Return what the model's own forward gives for one conversation alone, without padding."""
        out = self._model(input_ids=torch.tensor([ids], device=self._device), use_cache=False)
        return tuple(out.logits[0].float().tolist())


# ---- which passes -----------------------------------------------------------------------------


def choose_passes(model: Classifier, *, name: str) -> None:
    """Give the model shared passes where they compute what its own forward computes; padded ones, with a warning, else."""
    probe = _probe_conversations(model)
    model.use("padded")
    expected = [model.plain_outputs(tokens.ids) for tokens in probe]
    faults = []
    for skips_unread in (True, False):
        model.use("shared", skips_unread=skips_unread)
        fault = _fault(model, probe, expected)
        if fault is None:
            return
        faults.append(fault)
    log.warning("%s: a prompt is encoded again for each of its responses: %s", name, faults[-1])
    model.use("padded")
    model.tolerance = 0.0
    together, alone = model.score_ids(probe), [model.score_ids([tokens])[0] for tokens in probe]
    if repr(together) != repr(alone):
        model.tolerance = float((torch.tensor(together) - torch.tensor(alone)).abs().max())


def _probe_conversations(model: Classifier) -> list[Tokens]:
    """Two prompts with some responses each, with lengths around those at which kernels change."""
    usable = [i for i in range(min(model.vocab_size, 4096)) if i != model.pad_token_id]

    def ids(start: int, length: int) -> tuple[int, ...]:
        return tuple(usable[(i * 7 + 3) % len(usable)] for i in range(start, start + length))

    lengths = ((5, (1, 4, 7, 2)), (37, (33, 9, 64, 3, 17)))
    longest = max(1, model._max_positions // 2)
    return [
        Tokens(ids(s, min(prompt, longest)), ids(s + 11 * place + 1, min(answer, longest)))
        for s, (prompt, answers) in enumerate(lengths)
        for place, answer in enumerate(answers)
    ]


def _fault(model: Classifier, probe: list[Tokens], expected: list[tuple[float, ...]]) -> str | None:
    """What is wrong with the model's present passes; None = nothing."""
    try:
        together = model.score_ids(probe)
        alone = [model.score_ids([tokens])[0] for tokens in probe]
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        # Whatever a family's code says to a packed pass, the answer is the same: padded ones.
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no text'])[0]}"
    tolerance = 1e-4 if model._model.dtype == torch.float32 else 5e-2
    found_SO, alone_SO, expected_SO = torch.tensor(together), torch.tensor(alone), torch.tensor(expected)
    if not torch.allclose(found_SO, expected_SO, rtol=tolerance, atol=tolerance, equal_nan=True):
        worst = int((found_SO - expected_SO).abs().amax(-1).argmax())
        return (
            f"a score of {found_SO[worst].tolist()} where the model's own forward gives {expected_SO[worst].tolist()}"
        )
    # By their text: NaN is not equal to itself, and 0.0 is equal to -0.0.
    model.tolerance = 0.0 if repr(alone) == repr(together) else float((found_SO - alone_SO).abs().max())
    # On GPUs kernels change with the size of a pass, padded or not; there the tolerance is told to clients instead.
    if model._device.type == "cpu" and model.tolerance:
        return "on this processor the last bits of a score depend on what else is in the pass"
    return None
