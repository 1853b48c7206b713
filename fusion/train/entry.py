"""Where workers start. Ray Train's controller unpickles these functions only to hand them on, so they import nothing heavy."""

from typing import Any


def train(task: dict[str, Any]) -> None:
    """Entry point of a training worker."""
    from fusion.train.worker import train_worker  # in the worker only

    train_worker(task)


def refer(task: dict[str, Any]) -> None:
    """Entry point of a worker of a reference pass."""
    from fusion.train.reference import reference_worker  # in the worker only

    reference_worker(task)
