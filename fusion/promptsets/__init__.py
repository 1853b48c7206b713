"""Where prompts come from. A prompt set is a frozen config with a method that yields raw records.

To add a kind: one file with a config class that has `type`, `content`, `location` and `read`, and a line in the unions of
`sets.py`. Row checks are not repeated there: `records.py` turns every raw record into a `Prompt` or a reason, `filters.py`
says what is left out of a set, `clean.py` what is taken out across all of them, `existing.py` reads answers of a data set.
"""

from fusion.promptsets.clean import Clean, Decontaminate
from fusion.promptsets.existing import ExistingAnswers
from fusion.promptsets.sets import PromptSet

__all__ = ["Clean", "Decontaminate", "ExistingAnswers", "PromptSet"]
