"""A prompt that asks for a function by its tests, and a program that has it."""

from fusion.rows import Message, Prompt

F = "def f(x):\n    return x"


def prompt(*tests: str, name: str | None = "f", asked: str = "write f, and def helper(x) for it") -> Prompt:
    return Prompt("p", "code", (Message("user", asked),), tests=tests, entry_point=name)
