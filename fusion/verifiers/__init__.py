"""Verifiers: programs that say whether a response is correct. One domain per file.

A verifier is a frozen config with `type`, `label` and `load`; what `load` gives is a `Judge`. A judge may own processes,
and is closed. Model text is hostile input: no text makes a judge raise, hang, or give `correct` where it is not.
Importing this package imports neither math-verify nor sympy; they are imported in the processes that check.
"""

from typing import Annotated

from pydantic import Field

from fusion.verifiers.code import CodeVerifier
from fusion.verifiers.common import Judge, Judgement
from fusion.verifiers.math import MathVerifier

Verifier = Annotated[MathVerifier | CodeVerifier, Field(discriminator="type")]

__all__ = ["CodeVerifier", "Judge", "Judgement", "MathVerifier", "Verifier"]
