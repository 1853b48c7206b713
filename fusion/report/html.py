"""report.html: a run on one page, in one file, without script and without any external resource.

It decides nothing and measures nothing: numbers come from the summary, the notes of stages and the
metrics files. Sections whose data a run does not have say so. Names and texts come from recipes and
models, so everything passes through `escape` before it enters the page.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion.report.comparison import differences, result
from fusion.report.data import rewards, selection
from fusion.report.parts import duration, none
from fusion.report.style import CSS
from fusion.report.training import Curve, training


def render(
    summary: Mapping[str, Any],
    *,
    selections: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Curve],
    notices: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Return the report as one HTML text.

    Args:
        summary: what `build_summary` returned.
        selections: `sft` or arm -> notes of its select stage.
        scores: slug of each score stage -> its notes.
        curves: `sft` or arm -> lines of the metrics.jsonl of its training stage.
        notices: `sft` or arm -> alarms and warnings of its training stage.
    """
    sections = [
        ("result", "Result", result(summary)),
        ("differences", "Differences", differences(summary)),
        ("training", "Training", training(curves, notices)),
        ("rewards", "Rewards", rewards(scores, summary["benchmark"])),
        ("selection", "Selection", selection(selections)),
        ("stages", "Stages", _stages(summary)),
    ]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{text}</section>' for anchor, title, text in sections)
    title = escape(summary["recipe"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title} - fuseline report</title><style>{CSS}</style></head><body><main>"
        f"<h1>{title}</h1><nav>{links}</nav>{_facts(summary)}{body}"
        "<footer>Intervals are 95 % percentile bootstrap intervals over prompts; all samples of a prompt are drawn "
        "together, and both sides of a difference are drawn with the same prompts.</footer></main></body></html>\n"
    )


def _facts(summary: Mapping[str, Any]) -> str:
    stages = summary["stages"]
    reused = sum(stage["hit"] for stage in stages)
    work = sum(stage["seconds"] for stage in stages)
    prompts = max(summary["counts"].get("prompts", {}).values(), default=0)
    facts = [
        (str(len(summary["models"])), "models compared"),
        (f"{prompts:,}", f"held-out prompts ({summary['benchmark']})" if summary["benchmark"] else "held-out prompts"),
        (f"{len(stages)}", f"stages, {reused} reused" if reused else "stages, all made in this run"),
        (duration(summary["total_seconds"]), "for this run"),
        (duration(work), "of work in all stages"),
        (f"{sum(stage['quarantined'] for stage in stages):,}", "rows quarantined or dropped"),
    ]
    cards = "".join(f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in facts)
    return f'<div class="facts">{cards}</div>'


def _stages(summary: Mapping[str, Any]) -> str:
    stages = summary["stages"]
    if not stages:
        return none("Nothing was run.")
    by_kind: dict[str, float] = {}
    for stage in stages:
        kind = stage["stage"].partition("/")[0]
        by_kind[kind] = by_kind.get(kind, 0.0) + stage["seconds"]
    longest = max(by_kind.values()) or 1.0
    kinds = "".join(
        f'<span>{escape(kind)}</span><div class="bar" style="width:{seconds / longest:.1%}"></div>'
        f'<span class="num">{duration(seconds)}</span>'
        for kind, seconds in sorted(by_kind.items(), key=lambda item: -item[1])
    )
    slowest = max(stage["seconds"] for stage in stages) or 1.0
    rows = "".join(_stage_row(stage, slowest) for stage in stages)
    return (
        f'<div class="card"><h3>Time by kind of stage</h3><div class="bars">{kinds}</div></div><p></p>'
        '<div class="card"><table class="stages"><thead><tr><th>stage</th><th class="num">rows in</th>'
        '<th class="num">out</th><th class="num">refused</th><th class="time">time</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="note">Rows in = rows out + refused (quarantined, or dropped by a selection rule); the reasons stand '
        "under the stage. Time is that of all attempts, also where an earlier run made the stage.</p>"
    )


def _stage_row(stage: Mapping[str, Any], slowest: float) -> str:
    reasons = ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(stage["reasons"].items(), key=lambda r: -r[1])
    )
    state = "reused" if stage["hit"] else ""
    small = " · ".join(
        part for part in (f'<span class="key">{escape(stage["key"])}</span>', state, escape(reasons)) if part
    )
    refused = f'<span class="warn">{stage["quarantined"]:,}</span>' if stage["quarantined"] else "0"
    return (
        f'<tr><td class="name">{escape(stage["stage"])}<small>{small}</small></td><td class="num" data-label="rows in">{stage["rows_in"]:,}</td>'
        f'<td class="num" data-label="out">{stage["rows_out"]:,}</td><td class="num" data-label="refused">{refused}</td><td class="time" data-label="time">{duration(stage["seconds"])}'
        f'<div class="bar" style="width:{stage["seconds"] / slowest:.1%}"></div></td></tr>'
    )
