"""A user's own scorer: a Python function named in the recipe, `package.module:name`.

    def name(prompt: Prompt, response: Response, **parameters) -> float | Mapping[str, float]

A mapping holds "score"; its other entries are kept as named objectives. The function must be pure: it is
called in any order, in any process, and again after a restart. Its code is not looked at: what enters keys
is the name, the parameters and `version`, which the user raises when the function's meaning changes.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal

from pydantic import Field, JsonValue

from fusion.config import Config
from fusion.errors import RecipeError
from fusion.rewards.common import RewardScore
from fusion.rows import Prompt, Response


class PythonScorer(Config):
    """A scorer of the user's own."""

    type: Literal["python"] = "python"
    function: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    """Where the function is, `package.module:name`; importable where the recipe runs."""
    version: int | str
    """Raise it when the function gives other scores: the code itself is not part of the key."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Given to the function as keyword arguments."""

    @property
    def label(self) -> str:
        """Name that scored responses carry."""
        return self.function

    def load(self) -> "PythonReward":
        """Import the function.

        Raises:
            RecipeError: it cannot be imported; the text names the function and the cause.
        """
        module_name, _, name = self.function.partition(":")
        try:
            module = importlib.import_module(module_name)
        # Importing runs the user's code, which may raise anything.
        except Exception as error:
            raise RecipeError(
                f"score function {self.function!r}: module {module_name} cannot be imported ({_one_line(error)}); "
                "check the name, and that it lies in the working directory or on PYTHONPATH"
            ) from error
        function = vars(module).get(name)
        if not callable(function):
            what = "is not a function" if name in vars(module) else "does not exist"
            raise RecipeError(f"score function {self.function!r}: {name} {what} in {module.__file__}")
        return PythonReward(function, self.parameters)


class PythonReward:
    """The imported function, with every failure turned into a result of its row."""

    def __init__(self, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
        self._function = function
        self._parameters = dict(parameters)

    def score(self, prompt: Prompt, response: Response) -> RewardScore:
        """Return what the function says of one response; `scorer_error` when it raises or returns nonsense."""
        try:
            said = self._function(prompt, response, **self._parameters)
        # A stray sys.exit() would otherwise end the worker, and with it the stage, on one bad row.
        except (Exception, SystemExit) as error:
            return RewardScore.failed("scorer_error", _one_line(error))
        parts = said if isinstance(said, Mapping) else {"score": said}
        if "score" not in parts:
            return RewardScore.failed("scorer_error", f"the mapping has no 'score', only {sorted(map(str, parts))}")
        for name, value in parts.items():
            if not isinstance(name, str) or not isinstance(value, Real) or isinstance(value, bool):
                return RewardScore.failed(
                    "scorer_error", f"{name!r} is {value!r} ({type(value).__name__}); return a number for it"
                )
        values = {name: float(value) for name, value in parts.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                return RewardScore.failed("non_finite_score", f"{name} is {value}")
        return RewardScore(values.pop("score"), objectives=values)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
