"""The metrics on Ray's exporter, for the Front replica only: importing this imports Ray.

Ray exports them on the metrics port of each node (`ray start --metrics-export-port`), not on the service's
own port, and puts `ray_` before each name: `fuseline_requests_total` is `ray_fuseline_requests_total`
there (a counter that ends with `_total` gets no second one), and a histogram has the usual `_bucket`,
`_sum` and `_count`. Ray Serve adds the labels deployment, replica and application. A gauge that is not set
again for a minute is dropped by Ray until it is.
"""

from collections.abc import Mapping

from ray.serve.metrics import Counter, Gauge, Histogram

from serving.telemetry import METRICS, Metric, label_values


class RayTelemetry:
    """Sends numbers to the exporter of this node. Implements `Telemetry`; made inside a replica."""

    def __init__(self) -> None:
        self._metrics = {metric.name: _exported(metric) for metric in METRICS}

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        label_values(metric, labels)
        tags = dict(labels)
        match self._metrics[metric.name]:
            case Counter() as counter:
                counter.inc(value, tags)
            case Gauge() as gauge:
                gauge.set(value, tags)
            case Histogram() as histogram:
                histogram.observe(value, tags)


def _exported(metric: Metric) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.description, metric.labels)  # pyright: ignore[reportArgumentType]
        case "gauge":
            return Gauge(metric.name, metric.description, metric.labels)  # pyright: ignore[reportArgumentType]
        case "histogram":
            return Histogram(metric.name, metric.description, list(metric.buckets), metric.labels)  # pyright: ignore[reportArgumentType]
