"""The result table as plain text, for terminals and job logs."""

from collections.abc import Mapping
from typing import Any

from fusion.report.summary import METRICS

TITLES = {"reward": "reward", "exact": "exact", "greedy_reward": "greedy reward", "greedy_exact": "greedy exact"}
"""How metrics are called for people."""


def result_table(summary: Mapping[str, Any]) -> str:
    """Return models by metrics with 95 % intervals, the best of each column marked, then the differences.

    Example line: `wrpo   0.679 [0.669, 0.689]*`.
    """
    if not summary["models"]:
        return "no evaluation: the recipe has no `evaluate` block"
    shown = [m for m in METRICS if any(metrics[m] for metrics in summary["models"].values())]
    best = {metric: best_models(summary, metric) for metric in shown}
    lines = [["model", *(TITLES[m] for m in shown)]]
    for name, metrics in summary["models"].items():
        lines.append([name, *(_cell(metrics[m], star=name in best[m]) for m in shown)])
    text = [*_aligned(lines), "* best of its column; in brackets the 95 % interval over prompts"]
    if summary["differences"]:
        rows = [["difference", *(TITLES[m] for m in shown)]]
        pairs: dict[tuple[str, str], dict[str, Any]] = {}
        for d in summary["differences"]:
            pairs.setdefault((d["a"], d["b"]), {})[d["metric"]] = d
        for (a, b), by_metric in pairs.items():
            rows.append([f"{a} - {b}", *(_cell(by_metric.get(m), sign=True) for m in shown)])
        text += ["", *_aligned(rows)]
    return "\n".join(text)


def best_models(summary: Mapping[str, Any], metric: str) -> set[str]:
    """Names of the models with the highest mean of `metric`; more than one on a tie."""
    means = {name: metrics[metric]["mean"] for name, metrics in summary["models"].items() if metrics[metric]}
    return {name for name, mean in means.items() if mean == max(means.values())}


def _cell(interval: Mapping[str, float] | None, *, star: bool = False, sign: bool = False) -> str:
    if interval is None:
        return "-"
    form = "{:+.3f}" if sign else "{:.3f}"
    mean, low, high = (form.format(interval[name]) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]{'*' if star else ''}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [rows[0], "-" * max(map(len, rows)), *rows[1:]]
