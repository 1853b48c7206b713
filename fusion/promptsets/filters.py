"""What is left out of a prompt set on purpose: small frozen rules over one prompt.

A filter says nothing of a prompt that it keeps, and gives a detail for people of one that it drops. A dropped prompt is a
quarantined row with the filter's `reason`; such rows do not count as failures. To add a kind: a config with
`type`, a `reason` in `REASONS` and `refuses`, and its place in the union below.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fusion.config import Config
from fusion.errors import InputError
from fusion.promptsets.languages import known_languages, languages_of
from fusion.promptsets.topics import CODE, MATHS, cues_of
from fusion.rows import Prompt

REASONS = ("filter_code", "filter_math", "no_tests", "language", "length")
"""Reason codes of all filters."""


class DropCode(Config):
    """Drops prompts that ask for code or show some (see `topics.py`)."""

    type: Literal["drop_code"] = "drop_code"

    @property
    def reason(self) -> str:
        return "filter_code"

    def refuses(self, prompt: Prompt) -> str | None:
        """Return which cues speak for code, or None."""
        return ", ".join(cues_of(user_text(prompt), CODE)) or None


class DropMath(Config):
    """Drops prompts that ask for mathematics (see `topics.py`)."""

    type: Literal["drop_math"] = "drop_math"

    @property
    def reason(self) -> str:
        return "filter_math"

    def refuses(self, prompt: Prompt) -> str | None:
        """Return which cues speak for mathematics, or None."""
        return ", ".join(cues_of(user_text(prompt), MATHS)) or None


class HasTests(Config):
    """Keeps code prompts whose answers can be tested: they have tests, and name the function that assert lines call."""

    type: Literal["has_tests"] = "has_tests"

    @property
    def reason(self) -> str:
        return "no_tests"

    def refuses(self, prompt: Prompt) -> str | None:
        if not any(test.strip() for test in prompt.tests):
            return "no tests"
        if not prompt.entry_point and any(_ASSERT.search(test) for test in prompt.tests):
            return "its tests are assert lines, but it has no entry_point"
        return None


class Language(Config):
    """Keeps prompts in one of some languages.

    Chinese, Japanese and Korean are told by their script, others by py3langid. A prompt of two languages is kept when either
    is wanted, and so is one whose language cannot be told: under 20 letters of the Latin script, or no letters at all.
    """

    type: Literal["language"] = "language"
    keep: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = Field(min_length=1)
    """ISO 639 codes, e.g. `[en]` or `[zh]`."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Probability that py3langid must give its guess; below, the language counts as undecided."""

    @property
    def reason(self) -> str:
        return "language"

    def refuses(self, prompt: Prompt) -> str | None:
        """Return which language it is in instead, or None.

        Raises:
            InputError: `keep` has a code that no prompt could ever have.
        """
        found = languages_of(user_text(prompt), min_confidence=self.min_confidence)
        if not found or not found.isdisjoint(self.keep):
            return None
        unknown = set(self.keep) - known_languages()
        if unknown:
            codes = " ".join(sorted(known_languages()))
            raise InputError(f"filter language: keep has {min(unknown)!r}, which cannot be told; known codes: {codes}")
        return f"in {' and '.join(sorted(found))}, not {' or '.join(self.keep)}"


class Length(Config):
    """Keeps prompts whose conversation is neither too short nor too long."""

    type: Literal["length"] = "length"
    min_characters: int = Field(default=1, ge=1)
    """Least characters of all turns together, without surrounding white space."""
    max_characters: int | None = Field(default=None, ge=1)
    """Most characters; null = no limit but that of every prompt."""

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters {self.max_characters} is below min_characters {self.min_characters}; none could pass"
            )
        return self

    @property
    def reason(self) -> str:
        return "length"

    def refuses(self, prompt: Prompt) -> str | None:
        length = sum(len(message.content.strip()) for message in prompt.messages)
        if length < self.min_characters:
            return f"{length} characters, at least {self.min_characters}"
        if self.max_characters is not None and length > self.max_characters:
            return f"{length} characters, at most {self.max_characters}"
        return None


Filter = Annotated[DropCode | DropMath | HasTests | Language | Length, Field(discriminator="type")]

_ASSERT = re.compile(r"^\s*assert\b", re.MULTILINE)


def user_text(prompt: Prompt) -> str:
    """Return what the user says in all turns: what a prompt is about."""
    return "\n".join(message.content for message in prompt.messages if message.role == "user")
