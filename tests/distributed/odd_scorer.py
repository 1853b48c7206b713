"""A python scorer that misbehaves on some rows, importable by Ray's workers."""

from fusion.rows import Prompt, Response


def f(prompt: Prompt, response: Response, *, bonus: float = 0.0) -> object:
    """The answer's text says what happens; the prompt's reference is added to show that it arrives."""
    if response.text == "raise":
        raise ValueError("cannot judge this\nsecond line")
    if response.text == "nan":
        return float("nan")
    if response.text == "text":
        return "good"
    value = float(len(response.text)) + float(prompt.reference or 0) + bonus
    return {"score": value, "exact": float(response.text == "right")}
