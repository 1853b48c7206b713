"""The model card (README.md) of an exported model: what it was made from, as the manifests say.

It states no fact of its own. What manifests do not hold (licences) it says is not known.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusion.artifact import Manifest
from fusion.report.table import result_table

LICENCE_NOTE = (
    "This is bookkeeping, not legal advice: the licences of the target and of every source above hold for this "
    "model as far as they reach its outputs or derivatives (for example naming rules, notices, research-only "
    "clauses). Read each of them before you publish or sell."
)


def model_card(
    *,
    name: str,
    trained: Manifest | None,
    rows: Manifest,
    lineage: Sequence[Manifest],
    given: Mapping[str, str],
    chat: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    check: Mapping[str, Any],
) -> str:
    """Return the text of the card.

    Args:
        trained: manifest of the training stage; None for a model that was given.
        rows: manifest of the selection it was trained on.
        lineage: manifests of everything upstream, in the order in which they ran.
        given: `target` or source name -> identity of a model that was not made here.
        chat: identity of the chat rendering.
        evaluation: notes of the evaluate stage.
        check: what the export check compared.
    """
    parts = [
        _front_matter(given),
        f"# {name}",
        "A language model fused from the answers of other models (implicit fusion): trained on responses that "
        "source models gave to prompts, chosen by reward. Made with fuseline.",
        _sources(rows, lineage, given),
        _training(trained, lineage),
        _data(rows, lineage),
        _results(evaluation),
        _use(chat, check),
        "## Limits\n\n"
        "- What the scorer does not reward was not trained for, and what it rewards wrongly was learnt too.\n"
        "- It is measured on held-out prompts of the same kind as the training prompts only; nothing is known of others.\n"
        "- Nothing was done for safety or against bias beyond what target and sources bring with them.",
        _keys(trained, rows, lineage),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(given: Mapping[str, str]) -> str:
    base = given.get("target", "")
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if "@" in base:  # a hub repository; a local folder is no id that a hub knows
        repo, _, revision = base.partition("@")
        lines += [f"base_model: {json.dumps(repo)}", f"base_model_revision: {json.dumps(revision)}"]
    return "\n".join([*lines, "tags:", "- model-fusion", "- fuseline", "---"])


def _sources(rows: Manifest, lineage: Sequence[Manifest], given: Mapping[str, str]) -> str:
    answered: dict[str, list[Manifest]] = {}
    for m in lineage:
        if m.stage in ("generate", "existing"):
            answered.setdefault(m.key_payload["config"]["name"], []).append(m)
    names = [name for name in {**answered, **given} if name not in ("target", "sft")]
    wins = rows.notes.get("wins", {})
    lines = [
        "## Made from",
        "",
        "| role | model | identity | sampling | rows won | licence |",
        "|---|---|---|---|---|---|",
    ]
    lines.append(f"| target | target | {_cell(given.get('target', 'see keys'))} | - | - | not recorded |")
    for name in names:
        won = wins.get(name, {}).get("count", "-")
        cells = (name, given.get(name, "see keys"), _sampling(answered.get(name, ())), str(won), "not recorded")
        lines.append(f"| source | {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, "", LICENCE_NOTE])


def _sampling(answered: Sequence[Manifest]) -> str:
    """How a source answered, which may differ between domains."""
    told = []
    for config in (m.key_payload["config"] for m in answered):
        if "decodings" not in config:
            told.append("answers of a data set")
            continue
        only = f" ({', '.join(config['domains'])})" if config.get("domains") else ""
        told += [
            f"{d['num_samples']} at temperature {d['temperature']:g}, top-p {d['top_p']:g}{only}"
            for d in config["decodings"]
        ]
    return "; ".join(told) or "-"


def _training(trained: Manifest | None, lineage: Sequence[Manifest]) -> str:
    made = [m for m in (*lineage, trained) if m is not None and m.stage in ("sft", "prefer")]
    lines = ["## Training"]
    for manifest in made:
        config = manifest.key_payload["config"]["train"]
        notes = manifest.notes
        lines += [
            "",
            f"**{manifest.stage}/{manifest.slug}**: {manifest.rows_out} rows{_held_out(notes)}, {notes.get('steps', '?')} steps, "
            f"{notes.get('num_tokens', '?')} tokens, {manifest.num_quarantined} rows dropped"
            f"{_reasons(manifest)}.",
            "",
            "```json",
            json.dumps(config, indent=1, sort_keys=True),
            "```",
        ]
    return "\n".join(lines) if made else ""


def _held_out(notes: Mapping[str, Any]) -> str:
    count = notes.get("held_out_rows", 0)
    return f" (of which {count} held out, weights of step {notes['kept_step']} kept)" if count else ""


def _data(rows: Manifest, lineage: Sequence[Manifest]) -> str:
    rule = rows.key_payload["config"].get("rule", {})
    lines = [
        "## Data",
        "",
        f"Rows were selected by the rule `{rule.get('type', rows.slug)}`: {rows.rows_in} prompts in, {rows.rows_out} "
        f"rows out, {rows.num_quarantined} left out{_reasons(rows)}.",
        "",
        "| stage | rows in | rows out | refused |",
        "|---|---|---|---|",
    ]
    for m in (*lineage, rows):
        if m.stage not in ("sft", "prefer"):
            refused = f"{m.num_quarantined}{_reasons(m)}"
            lines.append(f"| {_cell(f'{m.stage}/{m.slug}')} | {m.rows_in} | {m.rows_out} | {_cell(refused)} |")
    return "\n".join(lines)


def _results(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "## Results\n\nNot evaluated."
    prompts = max(evaluation["counts"]["prompts"].values(), default=0)
    summary = {"models": evaluation["models"], "differences": evaluation["differences"]}
    return (
        f"## Results\n\nOn {prompts} held-out prompts (`{evaluation['benchmark']}`), mean with 95 % bootstrap interval "
        f"over prompts:\n\n```\n{result_table(summary)}\n```"
    )


def _use(chat: Mapping[str, Any], check: Mapping[str, Any]) -> str:
    return (
        "## Use\n\n"
        "Render conversations with `chat_template.jinja` and stop at any of `eos_token_id` in "
        f"`generation_config.json` ({', '.join(map(str, chat['stop_ids']))}); the end of turn that was trained is "
        f"{chat['end_of_turn_id']}. Where the template prints a date, it is {chat['date']} as in training. "
        f"System role: {chat['system_role']}.\n\n"
        f"The folder was checked when it was written: {check['rows']} training rows give the same token ids and the "
        f"same response log-probabilities as the trained model (largest difference {check['max_abs_difference']:.2g} "
        "nats)."
    )


def _keys(trained: Manifest | None, rows: Manifest, lineage: Sequence[Manifest]) -> str:
    lines = ["## Keys", "", "Each stage that led here, by its content key:", ""]
    manifests = [m for m in (*lineage, rows, trained) if m is not None]
    lines += [f"- `{m.stage}/{m.slug}` `{m.key}`" for m in manifests]
    versions = manifests[-1].provenance.get("versions", {})
    shown = ", ".join(f"{n} {v}" for n, v in versions.items())
    return "\n".join([*lines, "", f"Versions: {shown or 'not recorded'}."])


def _reasons(manifest: Manifest) -> str:
    shown = ", ".join(f"{reason} {count}" for reason, count in sorted(manifest.quarantined.items()))
    return f" ({shown})" if shown else ""


def _cell(text: str) -> str:
    """Text that stays inside its table cell."""
    return " ".join(text.split()).replace("|", "\\|")
