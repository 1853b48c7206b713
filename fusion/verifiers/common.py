"""What every verifier gives: a verdict on one response to one prompt, with the reason in a word."""

import dataclasses
from typing import Protocol

from fusion.rows import Prompt, Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """What a verifier says of a response. Example: `Judgement(Verdict.wrong, "timeout", "test 2: no answer in 6 s")`."""

    verdict: Verdict
    reason: str = ""
    """Short code that is counted, e.g. `timeout`; empty where the verdict says it all."""
    detail: str = ""
    """One line for people."""


class Judge(Protocol):
    """A loaded verifier. It may own processes: `close` ends them, and after it no process of it is left."""

    @property
    def level(self) -> str | None:
        """How strongly it confines the programs that it runs, for manifests; None where it runs none."""
        ...

    def judge(self, prompt: Prompt, text: str) -> Judgement:
        """Return what it says of the text of a response; never raises for anything in `text`."""
        ...

    def close(self) -> None:
        """End what it owns; may be called twice."""
        ...
