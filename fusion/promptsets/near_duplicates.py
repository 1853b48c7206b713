"""Prompts that say nearly the same: MinHash finds candidates, an exact comparison decides.

Two prompts are near duplicates when the Jaccard similarity of their sets of 5-token shingles reaches a threshold (MinHash
over 5-grams as in Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499). A prompt of
fewer than 5 tokens is one shingle, so short prompts are duplicates only when their tokens are equal. Of duplicates the first
in order stays. What LSH proposes is compared shingle by shingle, so nothing below the threshold is dropped; LSH itself
misses at most one in a thousand of the pairs that just reach it, and fewer of closer ones.
"""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

from fusion.promptsets.tokens import ngrams, words_and_signs

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

SHINGLE = 5
"""Tokens of a shingle."""

NUM_PERM = 128
SEED = 1
RECALL = 0.999
"""Share of the pairs at the threshold that LSH must propose."""


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """An earlier text that is nearly the same."""

    name: str
    similarity: float


class NearDuplicates:
    """The different texts seen so far.

    Example: at 0.85, a text of 100 different words and the same text with its last word changed share 95 of 97 shingles
    (0.98), so the second is a near duplicate of the first.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold`: least Jaccard similarity of near duplicates, from 0.5 to 1."""
        self._threshold = threshold
        self._names: list[str] = []
        self._texts: list[str] = []

    def see(self, name: str, text: str) -> Match | None:
        """Return the most similar text seen before that reaches the threshold (of several the earliest), or remember
        this one under `name`."""
        mine = shingles(text)
        sketch = self._empty.copy()  # a new one would draw its permutations again, which is most of the time
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in sorted(mine)])
        best: tuple[float, int] | None = None
        for place in sorted(int(str(key)) for key in self._lsh.query(sketch)):
            similarity = jaccard(mine, shingles(self._texts[place]))
            if similarity >= self._threshold and (best is None or similarity > best[0]):
                best = similarity, place
        if best is not None:
            return Match(self._names[best[1]], best[0])
        self._lsh.insert(str(len(self._names)), sketch)
        self._names.append(name)
        self._texts.append(text)
        return None

    @cached_property
    def _lsh(self) -> "MinHashLSH":
        from datasketch import MinHashLSH  # brings scipy, and planning must not need it

        return MinHashLSH(num_perm=NUM_PERM, params=bands(self._threshold))

    @cached_property
    def _empty(self) -> "MinHash":
        from datasketch import MinHash  # as above

        return MinHash(num_perm=NUM_PERM, seed=SEED)


def bands(threshold: float) -> tuple[int, int]:
    """Return (bands, rows) of LSH: as many rows as leave `RECALL` at the threshold, 1 - (1 - t^rows)^bands.

    Example: `bands(0.85)` is (18, 7), for 1 - (1 - 0.85^7)^18 = 0.99905. datasketch's own choice weighs misses against
    false candidates and finds 46 % at this threshold; false candidates cost us a comparison only.
    """
    fits = [r for r in range(1, NUM_PERM // 2 + 1) if 1 - (1 - threshold**r) ** (NUM_PERM // r) >= RECALL]
    rows = max(fits)
    return NUM_PERM // rows, rows


def shingles(text: str) -> frozenset[str]:
    """Return the 5-token shingles of a text; a shorter text is one shingle."""
    tokens = words_and_signs(text)
    return frozenset(ngrams(tokens, SHINGLE) or [" ".join(tokens)])


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return |a and b| / |a or b|. Example: of {1, 2, 3} and {2, 3, 4} it is 2 / 4."""
    return len(a & b) / len(a | b)
