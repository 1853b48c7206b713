"""A scorer for noise: how much of an answer reads like words. For dry runs with random-weight models.

It ranks texts without claiming that any of them is good, which is all that a dry run of the path needs.
"""

from fusion.rows import Prompt, Response


def score(prompt: Prompt, response: Response) -> dict[str, float]:
    """Return the share of letters and spaces in the answer, in [0, 1], and its number of distinct characters."""
    text = response.text
    readable = sum(c.isalpha() or c == " " for c in text)
    return {"score": readable / max(len(text), 1), "distinct": float(len(set(text)))}
