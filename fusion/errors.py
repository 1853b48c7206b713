"""The errors people see: what happened, to which file, row or field, and what to do.

Every class takes one finished sentence (so it pickles across Ray unchanged) and carries the exit
code of the command that ends with it. `ValueError`-like errors are for people's input; programming
mistakes stay `assert`.
"""


class FuselineError(Exception):
    """Base of every error whose text is meant for the user; printed without a traceback."""

    exit_code = 1


class InputError(FuselineError, ValueError):
    """Bad input that a person gave: a recipe, a prompts file, a model folder, a cluster."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that does not validate; the text names the full path of the field."""


class ClusterError(InputError):
    """A recipe that this Ray cluster cannot run; the text names what is missing."""


class ModelError(InputError):
    """A model folder or repository that cannot be used; the text names the file."""


class ArtifactError(FuselineError, ValueError):
    """An artifact that is damaged, of another row type, or made from other inputs."""


class OutdatedError(ArtifactError):
    """A whole artifact whose input has been made again with other bytes: none of its parts can be kept."""


class StageError(FuselineError, RuntimeError):
    """A stage that failed; the text names its directory and the command that resumes it."""


class BusyError(FuselineError, RuntimeError):
    """Another driver holds this stage; the text says who and how to free it."""

    exit_code = 75
