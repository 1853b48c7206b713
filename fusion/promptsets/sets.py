"""The kinds of prompt sets and of record files; the discriminated unions are the registry."""

from typing import Annotated

from pydantic import Field

from fusion.promptsets.files import JsonlFile, JsonlPrompts, ParquetFile, ParquetPrompts
from fusion.promptsets.hub import HubFiles, HubPrompts

PromptSet = Annotated[JsonlPrompts | ParquetPrompts | HubPrompts, Field(discriminator="type")]

Records = Annotated[JsonlFile | ParquetFile | HubFiles, Field(discriminator="type")]
"""Records without what makes prompts of them."""
