"""The worker side of stage score_file: an actor that reads its slice of the file, scores it and writes its part.

It is made in a Ray worker process and knows nothing of Ray. All conversations of a slice go to the reward model
in one call, those of one prompt next to each other; what has no score becomes a quarantined row with its reason.
"""

import dataclasses
from pathlib import Path

import pyarrow as pa

from fusion.artifact import Quarantined, commit_part
from fusion.rewards import ModelSettings, RewardScore, Truncation
from fusion.rewards.items import Conversation, Refused, refusal
from fusion.row_tables import from_table
from fusion.stages.chunks import Receipt
from fusion.stages.score_input import RowFile, RowReader, Slice


@dataclasses.dataclass(frozen=True, slots=True)
class ItemScore:
    """The score of one response of a file. Scores are finite; a non-finite one is quarantined before."""

    row: int
    """Number of its row in the file, counted from 0."""
    response: int | None
    """Its number in the row's `responses`; None where the row has one response."""
    score: float
    tokens: int
    """Tokens of the whole conversation, before any truncation."""
    truncated: bool
    """True when the model saw only a part of the conversation."""
    objectives: dict[str, float]
    """Named parts of the score, where the model has them."""


@dataclasses.dataclass(frozen=True)
class FileScorerSettings:
    """What an actor is made of; travels from the driver."""

    directory: Path
    source: RowFile
    scorer: ModelSettings
    allow_empty: bool
    folder: Path
    """Folder of the reward model."""
    device: str
    num_threads: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """A response that goes to the model."""

    row: int
    response: int | None
    conversation: Conversation


class FileScoreActor:
    """Scores slices of one file with one model."""

    def __init__(self, *, settings: FileScorerSettings) -> None:
        import torch  # only where a reward model runs; importing it takes seconds

        torch.set_num_threads(settings.num_threads)
        self._settings = settings
        self._reader = RowReader(settings.source)
        self._reward = settings.scorer.load(settings.folder, device=settings.device)
        chosen = settings.scorer.truncation
        self._truncation: Truncation = "error" if chosen == "quarantine" else chosen

    def run_chunk(self, index: int, table: pa.Table) -> Receipt:
        """Score a slice and write its part and its quarantined rows, in the order of the file."""
        (part,) = from_table(table, Slice)
        outcomes = self._outcomes(part)
        asked = [outcome for outcome in outcomes if isinstance(outcome, _Asked)]
        scores = iter(self._reward.score([a.conversation for a in asked], truncation=self._truncation))
        out: list[ItemScore] = []
        refused: list[Quarantined] = []
        tokens = 0
        for outcome in outcomes:
            if isinstance(outcome, Quarantined):
                refused.append(outcome)
                continue
            said = next(scores)
            tokens += said.num_tokens
            if said.score is None:
                refused.append(_quarantined(outcome.row, outcome.response, _refusal_of(said)))
            else:
                out.append(
                    ItemScore(
                        outcome.row, outcome.response, said.score, said.num_tokens, said.truncated, said.objectives
                    )
                )
        commit_part(self._settings.directory, index, out, ItemScore, quarantined=refused)
        return Receipt(index, len(out), len(refused), tokens=tokens)

    def _outcomes(self, part: Slice) -> list[_Asked | Quarantined]:
        """Return what becomes of every response of the slice, in order: to be scored, or refused already."""
        source = self._settings.source
        repeated = dict(zip(part.repeated, part.first, strict=True))
        found: list[_Asked | Quarantined] = []
        for row in self._reader.rows(part):
            try:
                if row.index in repeated:
                    where = f"{source.place_name} {repeated[row.index]}"
                    raise Refused("duplicate_id", f"{where} has the same id; ids must be unique")
                item = row.item()
            except Refused as refused:
                found.append(_quarantined(row.index, None, refused))
                continue
            for response, conversation in item.conversations:
                refused = refusal(conversation, allow_empty=self._settings.allow_empty)
                found.append(
                    _Asked(row.index, response, conversation)
                    if refused is None
                    else _quarantined(row.index, response, refused)
                )
        return found


def _refusal_of(said: RewardScore) -> Refused:
    return Refused(said.error_code or "", said.error_message or "")


def _quarantined(row: int, response: int | None, refused: Refused) -> Quarantined:
    return Quarantined(row_key(row, response), refused.reason, refused.detail)


def row_key(row: int, response: int | None) -> str:
    """Return the name of a response in quarantine files: `12`, or `12/3` for response 3 of row 12."""
    return str(row) if response is None else f"{row}/{response}"
