"""The metrics of the service: which there are, and what a request adds to them.

`METRICS` is the whole list, and every label has few values: route templates, names of served models,
statuses and codes. Where the numbers go is a `Telemetry`: `InMemory` here, Ray's exporter in `ray_metrics`.
"""

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, Protocol

from serving.visit import Visit

Kind = Literal["counter", "gauge", "histogram"]

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name without the exporter's prefix, what it counts, its labels in order."""

    name: str
    kind: Kind
    description: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds in seconds, of a histogram."""


REQUESTS = Metric("fuseline_requests_total", "counter", "Requests that ended.", ("route", "status", "code", "model"))
SECONDS = Metric(
    "fuseline_request_seconds",
    "histogram",
    "Seconds from the first byte of a request to the last of its answer.",
    ("route", "model"),
    _REQUEST_BUCKETS,
)
FIRST_TOKEN = Metric(
    "fuseline_time_to_first_token_seconds",
    "histogram",
    "Seconds until the first event of a stream.",
    ("model",),
    _FIRST_TOKEN_BUCKETS,
)
IN_FLIGHT = Metric("fuseline_in_flight", "gauge", "Requests in one copy of the HTTP front.", ("route",))
QUEUE = Metric(
    "fuseline_queue",
    "gauge",
    "Requests in one copy of the front that no replica of the model has taken yet.",
    ("model",),
)
TOKENS = Metric("fuseline_tokens_total", "counter", "Tokens read or written by models.", ("model", "kind"))
TRUNCATED = Metric("fuseline_truncated_total", "counter", "Conversations that were cut to be scored.", ("model",))
NON_FINITE = Metric("fuseline_non_finite_total", "counter", "Scores that were not finite.", ("model",))
REJECTED = Metric(
    "fuseline_rejected_total", "counter", "Requests refused for load or a missing right, by code.", ("reason",)
)

METRICS = (REQUESTS, SECONDS, FIRST_TOKEN, IN_FLIGHT, QUEUE, TOKENS, TRUNCATED, NON_FINITE, REJECTED)

_REJECTIONS = frozenset({"overloaded", "rate_limited", "missing_api_key", "invalid_api_key", "forbidden", "not_ready"})


class Telemetry(Protocol):
    """Where numbers go. `labels` has exactly the labels of the metric."""

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter, set a gauge, or observe a value of a histogram."""
        ...


class InMemory:
    """Keeps the numbers in this process. Implements `Telemetry`."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        """Counters and gauges by name and label values, in the order of the labels; histograms their sum."""
        self.buckets: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        """Observations of a histogram per bucket; the last one is beyond all bounds."""

    def add(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        key = (metric.name, label_values(metric, labels))
        if metric.kind == "gauge":
            self.values[key] = value
            return
        self.values[key] += value
        if metric.kind == "histogram":
            counts = self.buckets.setdefault(key, [0] * (len(metric.buckets) + 1))
            counts[bisect.bisect_left(metric.buckets, value)] += 1

    def value(self, metric: Metric, **labels: str) -> float:
        """Return a counter, a gauge or the sum of a histogram; 0 where nothing was added."""
        return self.values.get((metric.name, label_values(metric, labels)), 0.0)

    def count(self, metric: Metric, **labels: str) -> int:
        """Return the observations of a histogram."""
        return sum(self.buckets.get((metric.name, label_values(metric, labels)), []))


def label_values(metric: Metric, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values in the order of the metric's labels; both must be the same set."""
    assert set(labels) == set(metric.labels), f"{metric.name} has labels {metric.labels}, not {tuple(labels)}"
    return tuple(labels[name] for name in metric.labels)


def report(visit: Visit, telemetry: Telemetry) -> None:
    """Add what one request did."""
    model = {"model": visit.model}
    ended = {"route": visit.route, "status": str(visit.status), "code": visit.code or "ok", **model}
    telemetry.add(REQUESTS, 1, ended)
    telemetry.add(SECONDS, visit.seconds, {"route": visit.route, **model})
    if visit.first_token_s is not None:
        telemetry.add(FIRST_TOKEN, visit.first_token_s, model)
    for kind, number in (
        ("prompt", visit.prompt_tokens),
        ("completion", visit.completion_tokens),
        ("scored", visit.scored_tokens),
    ):
        if number:
            telemetry.add(TOKENS, number, {**model, "kind": kind})
    if visit.truncated:
        telemetry.add(TRUNCATED, visit.truncated, model)
    if visit.non_finite:
        telemetry.add(NON_FINITE, visit.non_finite, model)
    if visit.code in _REJECTIONS:
        telemetry.add(REJECTED, 1, {"reason": visit.code})
