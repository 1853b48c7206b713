"""The code skill of the demo world: functions of two steps, their prompts' operands, and the tests that tell them apart.

Text only; nothing here runs a program (the code verifier does). The one idea: every program of this language is a line
a x + b, so asserts at two points or more tell any two of them apart, and every mistake is seen.
"""

import random

NAMES = ("f", "g", "h")
"""What a function may be called: its prompt's entry point."""

_SIGNS = {"add": "+", "take": "-", "times": "*"}

STEPS = tuple(_SIGNS)
"""The words for a step. A program has one `times` and one of the others, so that their order matters."""

TESTED_AT = (0, 2, 7)


def make_operands(rng: random.Random) -> tuple[str, ...]:
    """Return the name, and word and constant of both steps, e.g. `("f", "add", "3", "times", "2")`; there are 768.

    The constants differ, so that confusing them is a mistake.
    """
    times = rng.randint(2, 9)
    other = rng.choice([constant for constant in range(1, 10) if constant != times])
    steps = [("times", str(times)), (rng.choice(("add", "take")), str(other))]
    rng.shuffle(steps)
    return (rng.choice(NAMES), *steps[0], *steps[1])


def program(operands: tuple[str, ...]) -> str:
    """Return the right program.

    Example: for `("f", "add", "3", "times", "2")` two lines, `def f(x):` and ` return (x+3)*2`.
    """
    name, first, a, second, b = operands
    return _define(name, _two_steps(first, a, second, b))


def wrong_program(operands: tuple[str, ...]) -> str:
    """Return the one wrong program that people of this world write, by the first two words of the steps.

    add, times: the brackets are forgotten, so that the steps are done in the wrong order; take, times: `+` for `-`;
    times, add: the constants are exchanged; times, take: no colon, which is no Python.
    """
    name, first, a, second, b = operands
    match first, second:
        case "add", _:
            return _define(name, f"x+{a}*{b}")
        case "take", _:
            return _define(name, _two_steps("add", a, second, b))
        case _, "add":
            return _define(name, _two_steps(first, b, second, a))
        case _:
            return program(operands).replace(":", "")


def asserts_of(operands: tuple[str, ...]) -> tuple[str, ...]:
    """Return one test, three asserts that only right programs pass, e.g. `assert f(2) == 10`.

    One, since the verifier starts two processes for each.
    """
    name, first, a, second, b = operands
    return ("\n".join(f"assert {name}({x}) == {_step(_step(x, first, a), second, b)}" for x in TESTED_AT),)


def _define(name: str, value: str) -> str:
    return f"def {name}(x):\n return {value}"


def _two_steps(first: str, a: str, second: str, b: str) -> str:
    inner = f"x{_SIGNS[first]}{a}"
    if second == "times":
        inner = f"({inner})"
    return f"{inner}{_SIGNS[second]}{b}"


def _step(value: int, word: str, constant: str) -> int:
    match word:
        case "add":
            return value + int(constant)
        case "take":
            return value - int(constant)
        case _:
            return value * int(constant)
