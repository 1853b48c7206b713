"""What rank 0 writes down while it trains: metrics, and the alarms that they raise."""

import logging
from pathlib import Path
from typing import Self

from fusion.train.alarms import Watch
from fusion.train.metrics import MetricsWriter, read_metrics
from fusion.train.notices import ALARMS, add_notice, write_notices

log = logging.getLogger(__name__)


class Recorder:
    """Metrics and alarms of a run that begins or resumes after `steps_done` steps.

    What an earlier attempt wrote about later steps is removed; the watch sees the rest again, so that it raises the
    alarms that it would have raised without the kill.
    """

    def __init__(self, directory: Path, watch: Watch, *, steps_done: int) -> None:
        self._directory, self._watch = directory, watch
        self._metrics = MetricsWriter(directory, steps_done=steps_done)
        lines = read_metrics(directory)
        raised = [alarm for line in lines for alarm in watch.see(int(line["step"]), line)]
        write_notices(directory, ALARMS, raised)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of `step`, counted from 1."""
        self._metrics.write(step, metrics)
        for alarm in self._watch.see(step, metrics):
            log.warning("step %d: %s: %s", step, alarm.name, alarm.text)
            add_notice(self._directory, ALARMS, alarm)

    def sync(self) -> None:
        """Bring the metrics to the disk: before a checkpoint says that their steps are done."""
        self._metrics.sync()

    def close(self) -> None:
        self._metrics.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
