"""The tensors of a reward model: scores that do not depend on neighbours.

Imported by `load` only, of sequence classifiers and of families with another output layer (`Head`). Two kinds of passes: `shared` (a prompt once for all its responses) and
`padded` (`buckets.py`: shapes that the length of a conversation alone decides). Which one a model gets is tried out when
it is loaded: shared passes must give the scores of the model's own forward, and on CPU the same bits whatever else is in
the pass. The output layer is in float32 on the positions that the model's own forward would take.
Legend: R rows of a pass, L padded length, N tokens of a pass, S conversations, P positions that are read of each, H hidden
size, O outputs.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fusion.errors import ModelError
from fusion.models import check_folder
from fusion.packed import attention
from fusion.packed.last_mlp import LastMlp
from fusion.rewards.buckets import Batch, plan_batches
from fusion.rewards.common import Tokens
from fusion.rewards.loading import load_model
from fusion.rewards.sequence_classifier import outside
from fusion.rewards.shared import SharedPass, plan_passes
from fusion.sampling import Precision

log = logging.getLogger(__name__)

Passes = Literal["shared", "padded"]


class Head(Protocol):
    """The output layer of a reward model: what it reads of the hidden states, and what it makes of them.

    Attributes:
        outputs: names of its outputs.
        opening: ids that every prompt must end with for `places` to find what it reads; empty where any ids will do.
    """

    outputs: tuple[str, ...]
    opening: tuple[int, ...]

    def places(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the positions (P,) that are read of a conversation; it is one without `fault`."""
        ...

    def fault(self, ids: Sequence[int]) -> str | None:
        """Return why these ids cannot be read, None where they can."""
        ...

    def __call__(self, hidden_NH: Tensor, places_SP: Tensor) -> Tensor:
        """Return the raw outputs (S, O) in float32; no bit of a row depends on the other rows."""
        ...

    def plain(self, ids_1T: Tensor) -> Tensor:
        """Return the outputs (O,) of the model's own forward for one conversation alone, without padding."""
        ...


class LinearHead:
    """One linear layer on the last token: what all `...ForSequenceClassification` have in common."""

    opening: tuple[int, ...] = ()

    def __init__(self, model: Any) -> None:
        self._model = model
        self._weight_OH = model.score.weight.detach().float()
        self._pad_token_id: int | None = model.config.get_text_config().pad_token_id
        self.outputs = tuple(str(model.config.id2label[i]) for i in range(len(self._weight_OH)))

    def places(self, ids: Sequence[int]) -> tuple[int, ...]:
        return (last_token(ids, self._pad_token_id),)

    def fault(self, ids: Sequence[int]) -> str | None:
        return None

    def __call__(self, hidden_NH: Tensor, places_SP: Tensor) -> Tensor:
        return row_by_row(hidden_NH[places_SP[:, 0]], self._weight_OH)

    def plain(self, ids_1T: Tensor) -> Tensor:
        return self._model(input_ids=ids_1T, use_cache=False).logits[0]


def row_by_row(rows_SH: Tensor, weight_OH: Tensor) -> Tensor:
    """Return rows times weight^T, (S, O) in float32, without a matrix product: no sum then depends on where its row stands."""
    return (rows_SH.float()[:, None] * weight_OH).sum(-1)


def last_token(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Return the position that transformers' forward reads for this conversation alone, without padding.

    It is the last one that is not the pad token, or the last one where the model names no pad token. That is
    also what such models were trained with, so where pad and end of turn are one token it is kept.
    """
    if pad_token_id is None:
        return len(ids) - 1
    return next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != pad_token_id), 0)


class Classifier:
    """A loaded reward model on one device.

    Attributes:
        pad_token_id: that of the model's config; decides which position is read.
        outputs: names of its outputs.
        vocab_size: how many ids its embedding has.
        passes: the kind of passes that it is run with.
        tolerance: by how much the scores of the probe moved with their neighbours; 0 = not by a bit.
    """

    def __init__(self, model: Any, head: Head, *, folder: Path, tokens_per_forward: int) -> None:
        self._model = model
        self._trunk = model.base_model
        self.head = head
        self._device = model.device
        self._folder = folder
        self._tokens_per_forward = tokens_per_forward
        config = model.config.get_text_config()
        self.pad_token_id: int | None = config.pad_token_id
        self.outputs = head.outputs
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
        model = load_model(folder, dtype=dtype).eval().to(device)
        return cls.ready(model, LinearHead(model), folder=folder, tokens_per_forward=tokens_per_forward)

    @classmethod
    def ready(cls, model: Any, head: Head, *, folder: Path, tokens_per_forward: int) -> "Classifier":
        """Return a loaded model with the passes that it was found to bear."""
        found = cls(model, head, folder=folder, tokens_per_forward=tokens_per_forward)
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
        """Return the raw outputs (O,) of each conversation, in order; none of them has a `fault`."""
        found: list[tuple[float, ...]] = [()] * len(conversations)
        read = [self.head.places(tokens.ids) for tokens in conversations]
        if self.passes == "shared":
            for each in plan_passes(conversations, read, tokens_per_forward=self._tokens_per_forward):
                for item, outputs in zip(each.items, self._forward_shared(each).tolist(), strict=True):
                    found[item] = tuple(outputs)
            return found
        for batch in plan_batches([len(c) for c in conversations], tokens_per_forward=self._tokens_per_forward):
            for item, outputs in zip(batch.items, self._forward_padded(conversations, read, batch), strict=True):
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
        return self.head(hidden_1TH[0], each.read_SP.to(self._device))

    def _forward_padded(
        self, conversations: Sequence[Tokens], read: Sequence[tuple[int, ...]], batch: Batch
    ) -> list[tuple[float, ...]]:
        ids_RL = torch.zeros(batch.num_rows, batch.length, dtype=torch.long)
        mask_RL = torch.zeros_like(ids_RL)
        mask_RL[:, 0] = 1  # a dummy row without any position to look at would give NaN
        for row, item in enumerate(batch.items):
            ids = conversations[item].ids
            ids_RL[row, : len(ids)] = torch.tensor(ids)
            mask_RL[row, : len(ids)] = 1
        out = self._trunk(input_ids=ids_RL.to(self._device), attention_mask=mask_RL.to(self._device), use_cache=False)
        places_SP = torch.tensor([[row * batch.length + p for p in read[item]] for row, item in enumerate(batch.items)])
        outputs_SO = self.head(out.last_hidden_state.flatten(0, 1), places_SP.to(self._device))
        return [tuple(outputs) for outputs in outputs_SO.tolist()]

    def fault(self, ids: Sequence[int]) -> str | None:
        """Return why these ids cannot be scored, None where they can."""
        return outside(ids, self.vocab_size) or self.head.fault(ids)

    @torch.inference_mode()
    def plain_outputs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Return what the model's own forward gives for one conversation alone, without padding."""
        return tuple(self.head.plain(torch.tensor([ids], device=self._device)).float().tolist())


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
    opening = model.head.opening
    longest = max(1, model._max_positions // 2 - len(opening))
    return [
        Tokens(ids(s, min(prompt, longest)) + opening, ids(s + 11 * place + 1, min(answer, longest)))
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
    # Of the trunk: output layers may be float32 above one that is not.
    tolerance = 1e-4 if model._trunk.dtype == torch.float32 else 5e-2
    found_SO, alone_SO, expected_SO = torch.tensor(together), torch.tensor(alone), torch.tensor(expected)
    if not torch.allclose(found_SO, expected_SO, rtol=tolerance, atol=tolerance, equal_nan=True):
        worst = (found_SO - expected_SO).abs().argmax()
        found, wanted = found_SO.flatten()[worst].item(), expected_SO.flatten()[worst].item()
        return f"a score of {found:.6g} where the model's own forward gives {wanted:.6g}"
    # By their text: NaN is not equal to itself, and 0.0 is equal to -0.0.
    model.tolerance = 0.0 if repr(alone) == repr(together) else float((found_SO - alone_SO).abs().max())
    # On GPUs kernels change with the size of a pass, padded or not; there the tolerance is told to clients instead.
    if model._device.type == "cpu" and model.tolerance:
        return "on this processor the last bits of a score depend on what else is in the pass"
    return None
