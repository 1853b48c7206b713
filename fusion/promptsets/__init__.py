"""Where prompts come from. A prompt set is a frozen config with a method that yields raw records.

To add a kind: one file with a config class that has `type`, `files()` and `identity`, one line in the
union below. Row checks are not repeated here: `records.py` turns every raw record into a `Prompt` or a
reason.
"""

from typing import Annotated

from pydantic import Field

from fusion.promptsets.files import JsonlPrompts, ParquetPrompts
from fusion.promptsets.hub import HubPrompts

PromptSet = Annotated[JsonlPrompts | ParquetPrompts | HubPrompts, Field(discriminator="type")]
