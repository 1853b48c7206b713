"""The report's curves of training: margins, losses and log-probabilities per role, arm by arm."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion.report.parts import figure, none
from fusion.report.plots import NUM_COLOURS, Series, line_chart

Curve = Sequence[Mapping[str, float]]
"""Lines of a metrics.jsonl."""

_HIDDEN_ROLES = ("chosen",)
"""Of WRPO, whose `chosen` is the mix of source_chosen and target_chosen."""


def training(curves: Mapping[str, Curve], notices: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the charts of all trainings, under what was noticed while they ran.

    Args:
        notices: `sft` or arm -> its alarms and warnings, each with `step` and `text`.
    """
    curves = {name: lines for name, lines in curves.items() if lines}
    if not curves:
        return none("There are no training metrics.")
    colours = {name: i % NUM_COLOURS for i, name in enumerate(curves)}
    prefer = {name: lines for name, lines in curves.items() if any("rewards/margins" in line for line in lines)}
    imitate = {name: lines for name, lines in curves.items() if name not in prefer}
    charts = []
    if prefer:
        charts += [
            _curve_chart("Reward margin", prefer, "rewards/margins", colours, "chosen minus rejected"),
            _curve_chart(
                "Reward accuracy", prefer, "rewards/accuracies", colours, "share of rows with a positive margin"
            ),
            _loss_chart(prefer, colours),
            *_role_charts(prefer),
        ]
    if imitate:
        charts.append(
            _curve_chart(
                "SFT loss", imitate, "loss", colours, "in nats; per response token unless `normalise` says otherwise"
            )
        )
    charts += [
        _curve_chart("Held-out loss", curves, "eval/loss", colours, "on rows that were not trained on", smoothed=False),
        _curve_chart(
            "Held-out reward accuracy",
            prefer,
            "eval/rewards/accuracies",
            colours,
            "share of rows with a positive margin, at one alpha",
            smoothed=False,
        ),
        _curve_chart(
            "Length tilt",
            prefer,
            "lengths/tilt",
            colours,
            "how much longer the responses are that the model favours now",
            mark=(0.0, "no change"),
        ),
        _curve_chart("Gradient norm", curves, "grad_norm", colours, "before clipping"),
        _curve_chart(
            "Alpha", prefer, "alpha", colours, "share of the source response in the chosen side", smoothed=False
        ),
    ]
    return (
        f"{_notices(notices)}<p>Thick lines are running means over a tenth of the steps, thin ones the values of single steps.</p>"
        f'<div class="cells">{"".join(charts)}</div>'
    )


def _loss_chart(prefer: Mapping[str, Curve], colours: Mapping[str, int]) -> str:
    """Losses of the arms; where all begin at ln 2, as the logistic ones do, that is marked."""
    begin = [value for value in (lines[0].get("loss") for lines in prefer.values()) if value is not None]
    if begin and all(abs(value - math.log(2)) < 1e-3 for value in begin):
        caption, mark = "ln 2 is no preference", (math.log(2), "ln 2")
    else:
        caption, mark = "losses of different objectives have different scales", None
    return _curve_chart("Preference loss", prefer, "loss", colours, caption, mark=mark)


def _notices(notices: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    items = [
        f"<li><b>{escape(name)}</b>, step {notice['step']}: {escape(notice['text'])}</li>"
        for name, told in notices.items()
        for notice in told
    ]
    return f'<p>Noticed while training:</p><ul class="notices">{"".join(items)}</ul>' if items else ""


def _curve_chart(
    title: str,
    curves: Mapping[str, Curve],
    metric: str,
    colours: Mapping[str, int],
    caption: str,
    *,
    mark: tuple[float, str] | None = None,
    smoothed: bool = True,
) -> str:
    series = [Series(name, _points(lines, metric), colours[name]) for name, lines in curves.items()]
    series = [s for s in series if s.points]
    return (
        figure(title, caption, _legend(series), line_chart(title, series, mark=mark, smoothed=smoothed))
        if series
        else ""
    )


def _role_charts(prefer: Mapping[str, Curve]) -> list[str]:
    """One chart of log-probabilities per arm, all with one scale, so that arms can be compared by eye."""
    by_arm = {name: _role_series(lines) for name, lines in prefer.items()}
    values = [y for series in by_arm.values() for s in series for _, y in s.points]
    if not values:
        return []
    span = (min(values), max(values))
    return [
        figure(
            f"Log-probability: {name}",
            "nats per response; legend: first → last tenth",
            _legend(series, change=True),
            line_chart(f"log-probability per role, {name}", series, y_range=span),
        )
        for name, series in by_arm.items()
        if series
    ]


def _role_series(lines: Curve) -> list[Series]:
    keys = dict.fromkeys(key for line in lines for key in line)  # a value that is not finite is left out of its line
    names = [key.removeprefix("logps/") for key in keys if key.startswith("logps/")]
    if len(names) > 2:
        names = [n for n in names if n not in _HIDDEN_ROLES]
    # One colour per role in every chart: the rejected response is always the orange line.
    colour = {"chosen": 0, "target_chosen": 0, "rejected": 1, "source_chosen": 2}
    return [Series(n, _points(lines, f"logps/{n}"), colour.get(n, 3 + i)) for i, n in enumerate(names)]


def _points(lines: Curve, metric: str) -> tuple[tuple[float, float], ...]:
    """The finite values of a metric by step; where a resumed run wrote a step again, the later one."""
    values = {line["step"]: line.get(metric) for line in lines}
    return tuple((float(x), float(y)) for x, y in sorted(values.items()) if y is not None and math.isfinite(y))


def _legend(series: Sequence[Series], *, change: bool = False) -> str:
    items = []
    for s in series:
        part = max(1, len(s.points) // 10)
        first, last = (sum(y for _, y in p) / len(p) for p in (s.points[:part], s.points[-part:]))
        text = f"{s.name} {first:.1f} → {last:.1f}".replace("-", "−") if change else s.name
        items.append(f'<li><i class="c{s.colour}"></i>{escape(text)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
