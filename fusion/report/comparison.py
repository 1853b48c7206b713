"""The report's comparison of models: the result table with intervals, and the differences."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion.report.parts import none, percent
from fusion.report.plots import number, ticks, track, track_axis
from fusion.report.summary import METRICS
from fusion.report.table import TITLES, best_models


def result(summary: Mapping[str, Any]) -> str:
    models = summary["models"]
    if not models:
        return none("This recipe has no evaluate block, so models were not compared.")
    shown = _shown_metrics(summary)
    best = {metric: best_models(summary, metric) for metric in shown}
    marks = {metric: _marks([m[metric] for m in models.values() if m[metric]]) for metric in shown}
    head = "".join(f"<th>{escape(TITLES[m])}{track_axis(marks[m])}</th>" for m in shown)
    rows = []
    for title, names in _groups(summary):
        if title:
            rows.append(f'<tr class="group"><td colspan="{len(shown) + 1}">{title}</td></tr>')
        for name in names:
            cells = "".join(_metric_cell(name, m, models[name][m], marks[m], name in best[m]) for m in shown)
            strong = "b" if shown and name in best[shown[0]] else "span"
            label = f"<{strong}>{escape(name)}</{strong}>{_answer_note(summary, name)}"
            rows.append(f'<tr><td class="name">{label}</td>{cells}</tr>')
    return (
        f"{_lead(summary, shown, best)}"
        f'<div class="card"><table class="wide"><thead><tr><th>model</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">Mean with 95 % interval; the best of each column is bold. {_left_out(summary)}</p>'
    )


def _lead(summary: Mapping[str, Any], shown: Sequence[str], best: Mapping[str, set[str]]) -> str:
    if not shown:
        return ""
    first = shown[0]
    names = " and ".join(f"<b>{escape(n)}</b>" for n in sorted(best[first]))
    top = next(summary["models"][n][first] for n in sorted(best[first]))
    text = (
        f"{names} has the highest {escape(TITLES[first])}: {number(top['mean'])} "
        f"({number(top['low'])} to {number(top['high'])})."
    )
    others = [m for m in shown[1:] if best[m] != best[first]]
    if others:
        parts = [f"{' and '.join(escape(n) for n in sorted(best[m]))} by {escape(TITLES[m])}" for m in others]
        text += f" By other measures another model leads: {', '.join(parts)}."
    elif len(shown) > 1:
        text += " It leads by every other measure too."
    return f'<p class="lead">{text}</p>'


def _metric_cell(
    model: str, metric: str, interval: Mapping[str, float] | None, marks: Sequence[float], best: bool
) -> str:
    title = escape(TITLES[metric])
    if interval is None:
        return f'<td data-metric="{title}"><span class="ci">not stated</span></td>'
    mean, low, high = (number(interval[k]) for k in ("mean", "low", "high"))
    text = f"{model}, {TITLES[metric]}: {mean} ({low} to {high})"
    line = track(
        interval["mean"], interval["low"], interval["high"], marks=marks, text=text, tone="" if best else "plain"
    )
    kind = ' class="best"' if best else ""
    return f'<td{kind} data-metric="{title}"><b>{mean}</b> <span class="ci">{low} to {high}</span>{line}</td>'


def _groups(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Models as start, arms and sources; an arm is a model that a training stage of that name made."""
    trained = {
        stage["stage"].partition("/")[2]
        for stage in summary["stages"]
        if stage["stage"].startswith(("sft/", "prefer/"))
    }
    names = list(summary["models"])
    start = [n for n in names if n in ("target", "sft")]
    arms = [n for n in names if n in trained and n not in start]
    sources = [n for n in names if n not in start and n not in arms]
    return [(t, n) for t, n in (("start", start), ("arms", arms), ("sources", sources)) if n]


def _answer_note(summary: Mapping[str, Any], name: str) -> str:
    """Mean length and share of finished answers, of the sampled ones where there are any; all in the tooltip."""
    answers = summary["answers"].get(name, {})
    texts = {
        decoding: f"{facts['mean_tokens']:.1f} tokens, {percent(facts['share_finished'])} finished"
        for decoding, facts in answers.items()
    }
    if not texts:
        return ""
    shown = texts.get("sample") or next(iter(texts.values()))
    everything = "; ".join(f"{decoding}: {text}" for decoding, text in texts.items())
    return f'<small title="{escape(everything)}">{shown}</small>'


def _left_out(summary: Mapping[str, Any]) -> str:
    worst: dict[str, int] = {}
    for by_model in summary["counts"].get("left_out", {}).values():
        for model, count in by_model.items():
            worst[model] = max(count, worst.get(model, 0))
    if not worst:
        return "Every model answered every prompt."
    most = max(worst.values())
    return f"Prompts that not all models answered ({most} at most) are left out for all of them."


def differences(summary: Mapping[str, Any]) -> str:
    found = summary["differences"]
    if not found:
        return none("There is nothing to compare.")
    shown = [m for m in METRICS if any(d["metric"] == m for d in found)]
    marks = {m: _marks([d for d in found if d["metric"] == m], zero=True) for m in shown}
    pairs: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    for d in found:
        pairs.setdefault((d["a"], d["b"]), {})[d["metric"]] = d
    head = "".join(f"<th>{escape(TITLES[m])}{track_axis(marks[m])}</th>" for m in shown)
    rows = []
    for (a, b), by_metric in pairs.items():
        cells = "".join(_difference_cell(a, b, m, by_metric.get(m), marks[m]) for m in shown)
        rows.append(f'<tr><td class="name">{escape(a)} − {escape(b)}</td>{cells}</tr>')
    return (
        "<p>Mean over prompts of the first model minus the second on the same prompts. An interval that holds 0 "
        "(grey) means that these prompts cannot tell the two apart.</p>"
        f'<div class="card"><table class="wide"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _difference_cell(a: str, b: str, metric: str, d: Mapping[str, float] | None, marks: Sequence[float]) -> str:
    title = escape(TITLES[metric])
    if d is None:
        return f'<td data-metric="{title}"><span class="ci">not stated</span></td>'
    tone, verdict = (
        ("", "higher") if d["low"] > 0 else ("down", "lower") if d["high"] < 0 else ("open", "not told apart")
    )
    mean, low, high = (number(d[k], sign=True) for k in ("mean", "low", "high"))
    line = track(
        d["mean"], d["low"], d["high"], marks=marks, tone=tone, zero=True,
        text=f"{a} - {b}, {TITLES[metric]}: {mean} ({low} to {high}), {verdict}",
    )  # fmt: skip
    return f'<td data-metric="{title}"><b>{mean}</b> <span class="ci">{low} to {high}</span>{line}</td>'


def _shown_metrics(summary: Mapping[str, Any]) -> list[str]:
    return [m for m in METRICS if any(metrics[m] for metrics in summary["models"].values())]


def _marks(intervals: Sequence[Mapping[str, float]], *, zero: bool = False) -> list[float]:
    """Round numbers that span the intervals, and 0 where a difference is shown."""
    ends = [i["low"] for i in intervals] + [i["high"] for i in intervals] + ([0.0] if zero else [])
    return ticks(min(ends), max(ends), about=3)
