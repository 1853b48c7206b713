"""Rows that are given instead of selected: a file of training rows, as `fuseline import` writes of a published data set.

It stands where a rule stands and has what the graph asks of one; there are no answers to choose from, so it is never
called. Example: `{type: rows, path: imported/rows.parquet, holds: PreferenceQuadruple}` trains WRPO on published quadruples.
"""

import builtins
from pathlib import Path
from typing import ClassVar, Literal

from fusion.artifact import file_sha256
from fusion.config import Config
from fusion.errors import InputError
from fusion.row_files import row_type_of
from fusion.rows import TRAINING_ROWS

RowTypeName = Literal[
    "SftExample",
    "PreferencePair",
    "PreferenceQuadruple",
    "PreferenceSet",
    "ResponseGroup",
    "WeightedResponses",
    "WeightedPairs",
    "WeightedGroups",
]


class GivenRows(Config):
    """Training rows in a Parquet file."""

    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = False
    side: ClassVar[Literal["all"]] = "all"

    type: Literal["rows"] = "rows"
    path: Path
    """The file; identified by its content, so it may move."""
    holds: RowTypeName
    """Type of its rows, which must be one that the loss reads."""

    @property
    def row_type(self) -> builtins.type:
        """Rows that are in the file."""
        return next(row_type for row_type in TRAINING_ROWS if row_type.__name__ == self.holds)

    @property
    def identity(self) -> "GivenContent":
        """What is in the file, wherever it is.

        Raises:
            InputError: there is no such file, or it holds no training rows, or those of another type. What is asked is in
                the file's footer, so a wrong file is known when a run is planned.
        """
        held = row_type_of(self.path)
        if held is not self.row_type:
            raise InputError(f"{self.path} holds {held.__name__} rows, the recipe says holds: {self.holds}")
        return GivenContent(content=file_sha256(self.path), holds=self.holds)


class GivenContent(Config):
    """Identity of given rows."""

    type: Literal["rows"] = "rows"
    content: str
    """sha256 of the file."""
    holds: RowTypeName
    """Type of its rows."""
