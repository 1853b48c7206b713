"""Builders of scored answers for tests of selection and scoring."""

from fusion.rows import Finish, Message, Prompt, Response, ScoredResponse, Verdict


def prompt(prompt_id: str = "p", *, domain: str = "words", dataset: str | None = None) -> Prompt:
    return Prompt(prompt_id, domain, (Message("user", f"question {prompt_id}"),), dataset=dataset)


def response(
    model: str,
    sample: int = 0,
    *,
    prompt_id: str = "p",
    text: str | None = None,
    finish: Finish = Finish.stop,
    tokens: int = 3,
) -> Response:
    text = f"answer {sample} of {model}" if text is None else text
    return Response(prompt_id, model, sample, "sample", text, tuple(range(tokens)), finish, 0, 5, "t")


def scored(
    model: str, score: float, sample: int = 0, *, verdict: Verdict | str | None = None, **fields
) -> ScoredResponse:
    said = None if verdict is None else Verdict(verdict)
    return ScoredResponse(response(model, sample, **fields), score, "test", verdict=said)


def answers(model: str, *scores: float, prompt_id: str = "p") -> tuple[ScoredResponse, ...]:
    """One answer per score, with different texts."""
    return tuple(scored(model, score, i, prompt_id=prompt_id) for i, score in enumerate(scores))
