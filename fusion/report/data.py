"""The report's view of the data: rewards per model, who wins the selections, and what was dropped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fusion.report.parts import bars, figure, none, percent
from fusion.report.plots import histogram, number

Notes = Mapping[str, Any]


def rewards(scores: Mapping[str, Notes], benchmark: str | None) -> str:
    """Return histograms of training responses, and folded away those of held-out ones (slug `<benchmark>-<model>`).

    Args:
        scores: slug of a score stage -> its notes, with a list `scores` of one entry per model and decoding.
    """
    held_out, training = [], []
    for slug, notes in scores.items():
        side = held_out if benchmark is not None and slug.startswith(f"{benchmark}-") else training
        side += notes.get("scores", [])
    text = _histograms(training) if training else none("No training responses were scored.")
    if held_out:
        num_models = len({entry["model"] for entry in held_out})
        text += (
            f"<details><summary>Held-out responses of {num_models} models</summary>{_histograms(held_out)}</details>"
        )
    return text


def _histograms(entries: Sequence[Notes]) -> str:
    """One histogram per entry, all of one scorer with one x axis."""
    figures = []
    for entry in entries:
        alike = [e["histogram"]["edges"] for e in entries if e["scorer"] == entry["scorer"]]
        same_model = [e for e in entries if e["model"] == entry["model"]]
        parts = [entry["model"]]
        parts += [entry["decoding"]] if len({e["decoding"] for e in same_model}) > 1 else []
        parts += [entry["scorer"]] if len({e["scorer"] for e in same_model}) > 1 else []
        counts, edges = entry["histogram"]["counts"], entry["histogram"]["edges"]
        span = (min(e[0] for e in alike), max(e[-1] for e in alike))
        chart = histogram(f"rewards of {entry['model']}", counts, edges, mean=entry["mean"], x_range=span)
        figures.append(figure(", ".join(parts), _facts(entry), "", chart))
    return f'<div class="cells">{"".join(figures)}</div>'


def _facts(entry: Notes) -> str:
    facts = [f"{entry['n']:,} responses", f"{number(entry['min'])} to {number(entry['max'])}"]
    if entry["length_correlation"] is not None:
        facts.append(f"length correlation {entry['length_correlation']:+.2f}".replace("-", "−"))
    if entry["truncated"]:
        facts.append(f"{entry['truncated']:,} truncated")
    return ", ".join(facts)


def selection(selections: Mapping[str, Notes]) -> str:
    """Return one card per selection: wins per source (and domain), drops by reason, margins and lengths.

    Args:
        selections: `sft` or arm -> notes of its select stage. Arms that share a selection share a card.
    """
    if not selections:
        return none("No rows were selected.")
    shared: list[tuple[list[str], Notes]] = []
    for name, notes in selections.items():
        for names, known in shared:
            if known == notes:
                names.append(name)
                break
        else:
            shared.append(([name], notes))
    cards = []
    for names, notes in shared:
        prompts = sum(d["prompts"] for d in notes["domains"].values())
        rows = sum(d["rows"] for d in notes["domains"].values())
        wins = {source: won["count"] for source, won in notes["wins"].items()}
        cards.append(
            f'<div class="card"><h3>{escape(", ".join(names))}</h3>'
            f'<p class="note">rule {escape(notes["rule"])}: {rows:,} of {prompts:,} prompts gave a row{_margin(notes)}{_weights(notes)}</p>'
            + (bars("Wins per source", wins) if any(wins.values()) else "")
            + _wins_by_domain(notes["wins_by_domain"])
            + bars("Dropped, by reason", notes["drops"])
            + _drops_by_domain(notes["drops_by_domain"])
            + _lengths(notes["lengths"])
            + "</div>"
        )
    return f'<div class="cells">{"".join(cards)}</div>'


def _margin(notes: Notes) -> str:
    margins = notes["margins"]
    return f"; mean margin {number(margins['mean'])}" if margins else ""


def _weights(notes: Notes) -> str:
    """How evenly the weights of a prompt's answers are spread: 0 = one has everything."""
    weights = notes["weights"]
    if not weights:
        return ""
    entropy, equal = weights["mean_entropy"], weights["mean_entropy_if_equal"]
    share = f", {percent(entropy / equal)} of that of equal weights" if equal else ""
    return f"; {number(weights['mean_members'])} weights per row, mean entropy {number(entropy)} nats{share}"


def _drops_by_domain(drops: Mapping[str, Mapping[str, int]]) -> str:
    """One line per domain, where there are several."""
    if len(drops) < 2:
        return ""
    told = "; ".join(
        f"{domain}: {', '.join(f'{reason} {count:,}' for reason, count in reasons.items())}"
        for domain, reasons in drops.items()
    )
    return f"<figcaption>Dropped, by domain: {escape(told)}</figcaption>"


def _wins_by_domain(wins: Mapping[str, Mapping[str, int]]) -> str:
    """A table of sources by domains, each cell shaded by its share of the domain; nothing for a single domain."""
    if len(wins) < 2:
        return ""
    sources = list(next(iter(wins.values())))
    head = "".join(f"<th>{escape(domain)}</th>" for domain in wins)
    rows = []
    for source in sources:
        cells = []
        for domain, won in wins.items():
            share = won[source] / (sum(won.values()) or 1)
            title = f"{source} wins {won[source]:,} of {sum(won.values()):,} rows of {domain} ({percent(share)})"
            shade = f"background:color-mix(in srgb, var(--accent) {share * 70:.0f}%, transparent)"
            cells.append(f'<td style="{shade}" title="{escape(title)}">{won[source]:,}</td>')
        rows.append(f"<tr><th>{escape(source)}</th>{''.join(cells)}</tr>")
    return (
        '<figcaption>Wins per source and domain</figcaption><div class="scroll"><table class="heat"><thead>'
        f"<tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _lengths(lengths: Mapping[str, Mapping[str, float]]) -> str:
    if not lengths:
        return ""
    shown = ", ".join(f"{role} {length['mean_characters']:.0f}" for role, length in lengths.items())
    return f"<figcaption>Mean length in characters: {escape(shown)}</figcaption>"
