"""Score statistics of a finished score stage, for the report: read from its parts, column by column.

Histograms of all artifacts lie on one grid (round widths, edges at their multiples), so that those of two
models with the same width can be laid over each other.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion.artifact import part_name, read_part
from fusion.stage import Chunk

MOST_BINS = 24


def score_statistics(directory: Path, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Return the notes of a score stage: `scores` with one entry per model, decoding and scorer, and `truncated`.

    An entry: model, decoding, scorer, n, mean, std, min, max, truncated, mean_tokens (None for answers of a data set, which
    have no token ids), histogram (`edges`, `counts`) and length_correlation (Pearson, of score and response tokens; None
    where either is constant).
    """
    found: dict[tuple[str, str, str], list[_Piece]] = {}
    for chunk in chunks:
        for group, piece in _groups(directory / part_name(chunk.index)):
            found.setdefault(group, []).append(piece)
    entries = [
        {"model": model, "decoding": decoding, "scorer": scorer, **_statistics(pieces)}
        for (model, decoding, scorer), pieces in sorted(found.items())
    ]
    return {"scores": entries, "truncated": sum(entry["truncated"] for entry in entries)}


def _statistics(pieces: Sequence["_Piece"]) -> dict[str, Any]:
    scores = np.concatenate([piece.scores for piece in pieces])
    lengths = np.concatenate([piece.lengths for piece in pieces])
    return {
        **summary(scores),
        "truncated": sum(piece.truncated for piece in pieces),
        "mean_tokens": float(lengths.mean()) if lengths.any() else None,
        "length_correlation": correlation(scores, lengths),
        "histogram": histogram(scores),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """The rows of one group in one part."""

    scores: np.ndarray
    lengths: np.ndarray
    """Response tokens."""
    truncated: int


def _groups(part: Path) -> Iterator[tuple[tuple[str, str, str], _Piece]]:
    table = read_part(part)
    if not table.num_rows:
        return
    response = table["response"].combine_chunks()
    models, decodings = (response.field(name).to_pylist() for name in ("model", "decoding"))
    lengths = response.field("token_ids").value_lengths().to_numpy(zero_copy_only=False).astype(np.float64)
    scores = table["score"].to_numpy()
    truncated = np.array(table["truncated"].to_pylist())
    groups = list(zip(models, decodings, table["scorer"].to_pylist(), strict=True))
    for group in sorted(set(groups)):
        rows = np.array([g == group for g in groups])
        yield group, _Piece(scores[rows], lengths[rows], int(truncated[rows].sum()))


def summary(values: np.ndarray) -> dict[str, float | int]:
    """Return n, mean, std (of the population), min and max."""
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Pearson's correlation, None where one side is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    value = float(np.corrcoef(a, b)[0, 1])
    return value if math.isfinite(value) else None


def histogram(values: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Return `edges` (one more than counts) at multiples of 1, 2 or 5 times a power of ten, and `counts`."""
    low, high = float(values.min()), float(values.max())
    width = _width(high - low, around=max(abs(low), abs(high)))
    first = math.floor(low / width)
    num_bins = max(1, math.floor(high / width) - first + 1)
    edges = [round((first + i) * width, 12) for i in range(num_bins + 1)]
    places = np.clip(np.floor(values / width).astype(np.int64) - first, 0, num_bins - 1)
    return {"edges": edges, "counts": np.bincount(places, minlength=num_bins).tolist()}


def _width(spread: float, *, around: float) -> float:
    # Constant scores still need a bin of a size that their own value can be told in.
    least = max(spread / (MOST_BINS - 1), around * 1e-6, 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-12))
