"""Our rows into a file of a layout: every example is written or refused with a reason.

It is given rows, not where they are: `jobs.layouts` finds them. A file has one form, because its columns must be the
same in every row.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion.artifact import Quarantined, atomic_file, write_json
from fusion.errors import ArtifactError, InputError
from fusion.layouts import layouts_for
from fusion.layouts.example import Example, Kind, answers_to
from fusion.layouts.form import Form, Layout
from fusion.layouts.writing import BATCH_ROWS, SUMMARY_KIND, Sink, Target, beginning
from fusion.promptsets.records import Refused, content_digest
from fusion.rows import Prompt, ScoredResponse


@dataclasses.dataclass
class Exported:
    """What became of the examples: `examples` = those written + the refused ones."""

    layout: str
    kind: Kind
    examples: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    records: dict[str, int] = dataclasses.field(default_factory=dict)
    """Split -> records written. An example of several answers is as many records in a layout of one answer each."""
    weighted: int = 0
    """Examples of another weight than 1."""

    @property
    def written(self) -> int:
        return self.examples - sum(self.refused.values())


def export_examples(
    examples: Iterable[Example], kind: Kind, layout: Layout, target: Target, *, plain: bool = False, test: float = 0.0
) -> Exported:
    """Write examples in a layout.

    Args:
        kind: of all examples.
        plain: leave out what the publisher has no column for.
        test: share of the prompts that goes into the split `test`, by a hash of what the prompt says; folders only.

    Raises:
        InputError: the layout has no form for the kind, a share where there are no splits, or nothing could be written.
    """
    form = layout.form_for(kind)
    if form is None:
        raise InputError(
            f"--layout {layout.name} has no place for {_CALLED[kind]}; these have: {', '.join(layouts_for(kind))}"
        )
    if test and target.format != "folder":
        raise InputError(f"--test {test:g}: {target.path} has no splits; give a folder as --out")
    done = Exported(layout.name, kind)
    splits = ("train", "test") if test else ("train",)
    names = [path.name for path in (target.path, target.quarantine)]
    with beginning(target.summary, SUMMARY_KIND, names), contextlib.ExitStack() as stack:
        refused = stack.enter_context(atomic_file(target.quarantine)).open("w", encoding="utf-8")
        stack.callback(refused.close)
        writers = {
            name: _Batches(sink)
            for name, sink in stack.enter_context(target.open(form.schema(plain=plain), splits)).items()
        }
        for example in examples:
            done.examples += 1
            done.weighted += example.weight != 1
            try:
                records = _records(form, example, plain=plain)
            except Refused as reason:
                done.refused[reason.reason] += 1
                line = Quarantined(example.prompt.prompt_id, reason.reason, reason.detail)
                refused.write(json.dumps(dataclasses.asdict(line)) + "\n")
                continue
            split = splits[-1] if test and _draw(content_digest(example.prompt.messages)) < test else splits[0]
            writers[split].add(records)
        if not done.written:
            why = ", ".join(f"{reason} {count}" for reason, count in done.refused.most_common()) or "there are no rows"
            raise InputError(f"nothing to write to {target.path} in layout {layout.name}: {why}")
        for writer in writers.values():
            writer.flush()
        done.records = {name: writer.num_records for name, writer in writers.items()}
    if not done.refused:
        target.quarantine.unlink()
    write_json(target.summary, _summary(done, target, plain=plain))
    return done


def grouped(prompts: Iterable[Prompt], scored: Mapping[Path, Iterable[ScoredResponse]]) -> Iterator[Example]:
    """Yield all answers to each prompt as one example; prompts without an answer are passed over.

    Args:
        scored: artifact -> its answers, which stand in the order of the prompts.

    Raises:
        ArtifactError: answers that stand in another order, or answer no prompt.
    """
    cursors = {path: itertools.groupby(rows, key=lambda row: row.response.prompt_id) for path, rows in scored.items()}
    heads = {path: next(cursor, None) for path, cursor in cursors.items()}
    for prompt in prompts:
        answers: list[ScoredResponse] = []
        for path, head in heads.items():
            if head is not None and head[0] == prompt.prompt_id:
                answers += head[1]
                heads[path] = next(cursors[path], None)
        if answers:
            yield answers_to(prompt, tuple(answers))
    for path, head in heads.items():
        if head is not None:
            raise ArtifactError(
                f"{path}: {head[0]!r} is no prompt of its run, or stands out of the order of the prompts"
            )


_CALLED = {
    Kind.prompt: "prompts alone",
    Kind.answers: "answers that are not compared",
    Kind.sft: "answers to imitate",
    Kind.pair: "pairs",
    Kind.wrpo: "a source's answer beside the target's own pair",
}


def _records(form: Form, example: Example, *, plain: bool) -> list[dict[str, Any]]:
    return list(form.records(example, plain=plain))


def _draw(content: str) -> float:
    """Return a number in [0, 1) that a prompt has whatever file it stands in, and under whatever id."""
    digest = hashlib.sha256(f"test split\0{content}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


class _Batches:
    """Hands records to a sink, many at a time."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._held, self.num_records = sink, [], 0

    def add(self, records: list[dict[str, Any]]) -> None:
        self._held += records
        self.num_records += len(records)
        if len(self._held) >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._sink(self._held)
        self._held = []


def _summary(done: Exported, target: Target, *, plain: bool) -> dict[str, Any]:
    return {
        "kind": SUMMARY_KIND,
        "finished": True,
        "layout": done.layout,
        "format": target.format,
        "plain": plain,
        "rows": str(done.kind),
        "examples": done.examples,
        "written": done.written,
        "records": done.records,
        "quarantined": dict(sorted(done.refused.items())),
    }
