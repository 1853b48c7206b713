"""The math verifier: is the final answer of a response the gold answer? In the field's terms, a rule-based reward.

Four steps, each in a file of its own. `answers.py` finds the answer in the text. `notation.py` brings it and the gold
answer into one spelling. `comparison.py` settles plain numbers and texts. What is left needs algebra (is `\\sqrt{8}` the same as
`2\\sqrt{2}`?), and is asked of math-verify 0.9 in a child process (`math_checker.py`, `math_child.py`).

A check that fails is an `error` and says nothing of the response: it must never become a score of 0.
"""

from typing import Literal

from pydantic import Field

from fusion.config import Config
from fusion.rows import Prompt, Verdict
from fusion.verifiers.answers import Convention, find_answer, gold_answer
from fusion.verifiers.common import Judgement
from fusion.verifiers.comparison import align, settle, spell_beside, variants
from fusion.verifiers.math_checker import MathChecker
from fusion.verifiers.notation import spell


class MathVerifier(Config):
    """Compares final answers with `reference`. Example: `{type: math}`."""

    type: Literal["math"] = "math"
    extraction: tuple[Convention, ...] = Field(default=("boxed", "final"), min_length=1)
    """Where the answer of a response is looked for, in this order: `boxed` (the last `\\boxed{}` that closes), `final`
    (after the last `####`, `answer is`, `answer:`), `last_number` (a guess: the last number of the text)."""
    decimals: int = Field(default=6, ge=0, le=15)
    """Decimals to which a decimal number must agree with a gold answer that is none: 0.333333 is 1/3, 0.33 is not."""
    timeout_s: float = Field(default=6.0, gt=0, le=600)
    """Wall clock seconds for one comparison; a longer one is ended with its process and is an `error`."""
    memory_mb: int = Field(default=1024, ge=256)
    """Address space of the process that compares, in MiB."""
    version: Literal[3] = 3
    """Of the rules by which answers are read and compared: scores by other rules are not taken for those of these."""

    @property
    def label(self) -> str:
        """Name that verdicts carry."""
        return "math"

    def load(self) -> "MathJudge":
        """Start the process that compares.

        Raises:
            StageError: it does not start.
        """
        return MathJudge(self)


class MathJudge:
    """A loaded verifier: owns two processes, ended by `close`. May be asked from any thread.

    Reasons of `unparsable`: `no_answer`, `unclosed_box`, `answer_too_long`, `odd_characters`, `not_math`. Of `error`:
    `no_reference`, `gold_unparsable`, `timeout`, `memory`, `crashed`, `check_failed`.
    """

    def __init__(self, config: MathVerifier) -> None:
        self._config = config
        self.checker = MathChecker(timeout_s=config.timeout_s, memory_mb=config.memory_mb)

    @property
    def level(self) -> None:
        """It runs no programs."""
        return None

    def judge(self, prompt: Prompt, text: str) -> Judgement:
        """Return what it says of the text of a response.

        Example: with reference `\\frac{1}{2}`, "It is $\\boxed{0.5}$." is correct.
        """
        if prompt.reference is None or not prompt.reference.strip():
            return Judgement(Verdict.error, "no_reference", "the prompt has no gold answer to compare with")
        gold_found = gold_answer(prompt.reference)
        gold = spell(gold_found.text)
        if not gold.text:
            reason = gold_found.reason or "no_answer"
            return Judgement(Verdict.error, "gold_unparsable", f"gold answer {_shown(prompt.reference)}: {reason}")
        found = find_answer(text, self._config.extraction)
        answer = spell_beside(gold, found.text)
        if not answer.text:
            return Judgement(Verdict.unparsable, found.reason or "no_answer")
        gold, answer = align(gold, answer)
        detail = f"answer {_shown(found.text)}, gold answer {_shown(gold_found.text)}"
        same = settle(gold, answer, self._config.decimals)
        if same is not None:
            return Judgement(Verdict.correct if same else Verdict.wrong, detail=detail)
        return self._compared(*variants(gold, answer), detail)

    def close(self) -> None:
        """End its processes; may be called twice."""
        self.checker.close()

    def _compared(self, golds: list[str], answers: list[str], detail: str) -> Judgement:
        reply = self.checker.check(golds, answers, self._config.decimals)
        if reply.detail:
            detail = f"{reply.detail}; {detail}"
        match reply.result:
            case "correct":
                return Judgement(Verdict.correct, detail=detail)
            case "wrong":
                return Judgement(Verdict.wrong, detail=detail)
            case "unparsable":
                return Judgement(Verdict.unparsable, "not_math", detail)
            case "failed":
                return Judgement(Verdict.error, "check_failed", detail)
            case reason:
                return Judgement(Verdict.error, reason, detail)


def _shown(text: str) -> str:
    """One short line, with what cannot be printed escaped."""
    return repr(text if len(text) <= 80 else f"{text[:77]}…")
