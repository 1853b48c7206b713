"""Which rows are held out of training, with which loss they are looked at, and which evaluation is the best.

The one idea: whether a row is held out depends on (seed, prompt id) alone, not on its place among the rows, so that
the same prompt is held out in every arm that has it. A row's id is that of its prompt; the further rows of a prompt
that has several, as an import gives them, are called `p#2`, `p#3` and go where `p` goes: no prompt is on both sides.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa

from fusion.errors import StageError
from fusion.losses import Loss
from fusion.losses.alpha import ConstantAlpha
from fusion.train.encode import Encoded
from fusion.training import HeldOut, TrainConfig

_FURTHER = re.compile(r"(.+)#(?:[2-9]|[1-9][0-9]+)", re.DOTALL)
"""Id of a further row of a prompt. A prompt's own id may look the same."""


def split(
    row_ids: Sequence[str], held_out: HeldOut | None, *, seed: int, dropped: Collection[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers that are trained on and those that are held out, both ascending.

    Rows of one prompt are on one side, so `rows` may take a few more than it says.

    Args:
        dropped: ids of rows that were there and are not trained on; a prompt's further rows are known by its first.

    Raises:
        StageError: one of the two would be empty.
    """
    everything = np.arange(len(row_ids))
    if held_out is None:
        return everything, everything[:0]
    known = {*row_ids, *dropped}
    asked = [_prompt_of(row_id, known) for row_id in row_ids]
    places = np.array([_place(prompt_id, seed=seed) for prompt_id in asked])
    if held_out.share is not None:
        out = places < held_out.share
    else:
        assert held_out.rows is not None
        first = {asked[row] for row in np.argsort(places, kind="stable")[: held_out.rows]}
        out = np.array([prompt_id in first for prompt_id in asked])
    if out.all() or not out.any():
        wanted = f"rows {held_out.rows}" if held_out.share is None else f"share {held_out.share:g}"
        raise StageError(
            f"held_out ({wanted}) leaves {int((~out).sum())} of {len(row_ids)} rows to train on and "
            f"{int(out.sum())} to evaluate on; both must be at least 1, and rows of one prompt stay together"
        )
    return everything[~out], everything[out]


def split_rows(data: Encoded, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return what `split` says of the rows of a training."""
    return split(data.row_ids, config.held_out, seed=config.seed, dropped=[d.row_id for d in data.dropped])


def _prompt_of(row_id: str, known: Collection[str]) -> str:
    """Return the id of a row's prompt: `p` of `p#2` where there is a row `p`, else the row's own.

    Without that condition all prompts of a data set that calls them `set#1`, `set#2` would be one.
    """
    while (further := _FURTHER.fullmatch(row_id)) and further[1] in known:
        row_id = further[1]
    return row_id


def _place(prompt_id: str, *, seed: int) -> float:
    """A prompt's place in [0, 1), uniform over prompt ids."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def take(data: Encoded, rows: np.ndarray) -> Encoded:
    """Return the encoded rows of the given numbers as rows of their own."""
    return dataclasses.replace(data, table=data.table.take(pa.array(rows)).combine_chunks())


def evaluation_loss(config: TrainConfig) -> Loss:
    """The training's loss, with the fixed alpha of `held_out` where it states one.

    It must be called with the last step, which gives losses with a schedule the end of it at every evaluation.
    """
    assert config.held_out is not None
    if config.held_out.alpha is None:
        return config.loss
    return config.loss.model_copy(update={"alpha": ConstantAlpha(value=config.held_out.alpha)})


def is_due(step: int, held_out: HeldOut | None, *, total_steps: int) -> bool:
    """Whether an evaluation follows the `step`-th optimizer step (counted from 1)."""
    return held_out is not None and (step % held_out.every == 0 or step == total_steps)


def score(evaluation: Mapping[str, float], held_out: HeldOut) -> float:
    """Return what is to be maximised; a value that is missing because it was not finite is the worst."""
    if held_out.metric not in evaluation:
        return -math.inf
    value = evaluation[held_out.metric]
    return -value if held_out.metric == "loss" else value


def best_step(evaluations: Mapping[int, Mapping[str, float]], held_out: HeldOut) -> int:
    """Return the step of the best evaluation; of equal ones the latest.

    Example: `{100: {"loss": 0.5}, 200: {"loss": 0.4}, 300: {"loss": 0.4}}` gives 300.
    """
    return max(evaluations, key=lambda step: (score(evaluations[step], held_out), step))


def final_step(evaluations: Mapping[int, Mapping[str, float]], held_out: HeldOut | None, *, total_steps: int) -> int:
    """Return the step whose weights become the model.

    Args:
        evaluations: step -> evaluation, of all checkpoints that have one.
    """
    if held_out is None or held_out.keep == "last":
        return total_steps
    return best_step({step: evaluations[step] for step in sorted(evaluations)[-held_out.among :]}, held_out)


def to_keep(
    evaluations: Mapping[int, Mapping[str, float] | None], held_out: HeldOut | None, *, newest: int
) -> set[int]:
    """Return the steps whose checkpoints stay on disk.

    The newest few for damage, the best so far for people, and those that `final_step` will choose from.

    Args:
        evaluations: step of each checkpoint -> its evaluation, None where it has none.
    """
    kept = set(sorted(evaluations)[-newest:])
    known = {step: evaluation for step, evaluation in evaluations.items() if evaluation is not None}
    if held_out is not None and known:
        kept.add(best_step(known, held_out))
        if held_out.keep == "best":
            kept |= set(sorted(known)[-held_out.among :])
    return kept
