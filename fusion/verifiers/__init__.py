"""Verifiers: programs that say whether a response is correct. One domain per file.

A verifier is a frozen config with `type`, `label` and `load`; what `load` gives is a `Judge`. A judge may own processes,
and is closed. Model text is hostile input: no text makes a judge raise, hang, or give `correct` where it is not.
Importing this package imports neither math-verify nor sympy; they are imported in the processes that check.
"""

from fusion.verifiers.common import Judge, Judgement
from fusion.verifiers.math import MathVerifier

Verifier = MathVerifier

__all__ = ["Judge", "Judgement", "MathVerifier", "Verifier"]
