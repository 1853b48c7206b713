"""Files of a layout into what a recipe uses: prompts, answers to them, and training rows.

Every record is taken or refused with a reason. Prompts and answers say what the file says and no more; rows need a score
for each answer, and where the file has none it is the order alone (`example.row_of`). The result is a folder; its
summary is written last and says what became of every record.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion.artifact import Quarantined, atomic_file, write_json
from fusion.errors import InputError
from fusion.layouts import layouts_of
from fusion.layouts.checks import check_domain, checked
from fusion.layouts.example import OTHER, Answer, Example, Kind, as_set, model_of, row_of
from fusion.layouts.files import Found, read_records
from fusion.layouts.form import Layout, as_model, given, shown
from fusion.layouts.writing import beginning, is_ours, json_text
from fusion.promptsets.records import Refused, content_digest
from fusion.row_files import RowFile, read_rows
from fusion.rows import PreferenceQuadruple, PreferenceSet, Prompt

PROMPTS, ANSWERS, ROWS, QUARANTINE, SUMMARY = (
    "prompts.jsonl",
    "answers.jsonl",
    "rows.parquet",
    "quarantine.jsonl",
    "import.json",
)
SUMMARY_KIND = "fuseline import"
BATCH_ROWS = 512


@dataclasses.dataclass
class Imported:
    """What became of the records: `records` = `taken` + the refused ones."""

    layout: str
    folder: Path
    records: int = 0
    taken: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    prompts: int = 0
    answers: int = 0
    same_answers: int = 0
    """Answers that are the same as an earlier one of the same model to the same prompt, and not written again."""
    rows: int = 0
    row_type: str | None = None
    repeated: int = 0
    """Records that are taken and say what an earlier one says, word for word; they are kept, as selection keeps them."""
    without_row: int = 0
    """Records that are taken and give no row: prompts alone, and answers that nothing is compared with."""
    without_scores: int = 0
    """Rows of which the file says only which answer is better."""
    narrowed: int = 0
    """Rows without one of the answers that their record says to avoid, because it is also a preferred one."""

    def summary(self, sources: Iterable[Path]) -> dict[str, Any]:
        counts = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("folder", "refused")}
        return {
            "kind": SUMMARY_KIND,
            "finished": True,
            "sources": [str(path) for path in sources],
            **counts,
            "quarantined": dict(sorted(self.refused.items())),
        }


def import_files(
    sources: list[Path],
    layout: Layout,
    folder: Path,
    *,
    domain: str = "general",
    model: str | None = None,
    split: str | None = None,
) -> Imported:
    """Read files of a layout and write prompts.jsonl, answers.jsonl, rows.parquet and quarantine.jsonl into a folder.

    Args:
        domain: of prompts whose record names none.
        model: of answers whose record names none; sources' answers in the WRPO layout.
        split: of folders that hold several.

    Raises:
        InputError: a file that cannot be read or holds no record of the layout, a folder with something else in it, or a
            domain or model that none can be called.
    """
    _check_names(domain, model)
    _check_folder(folder)
    done = Imported(layout.name, folder)
    with (
        beginning(folder / SUMMARY, SUMMARY_KIND, (PROMPTS, ANSWERS, ROWS, QUARANTINE)),
        contextlib.ExitStack() as stack,
    ):
        out = _Output(stack, folder)
        first: tuple[str, Refused] | None = None
        for path in sources:
            for place, record in _of_layout(read_records(path, split=split), layout):
                done.records += 1
                try:
                    if isinstance(record, Refused):
                        raise record
                    said = _named(layout.example(record, domain=domain), model)
                    example = checked(said)
                    out.add(example)
                except Refused as refused:
                    done.refused[refused.reason] += 1
                    out.refuse(place, refused)
                    first = first or (place, refused)
                else:
                    done.taken += 1
                    done.narrowed += example is not said
        if not done.taken:
            what = f"{first[0]}: {first[1].reason}: {_shown(first[1].detail)}" if first else "they hold no record"
            raise InputError(f"nothing of layout {layout.name} in {', '.join(map(str, sources))}; {what}")
        out.close()
    done.prompts, done.answers, done.without_scores = out.num_prompts, out.num_answers, out.without_scores
    done.same_answers, done.repeated, done.without_row = out.num_same, out.num_repeated, out.without_row
    if out.rows is not None:
        done.rows, done.row_type = out.rows.num_rows, out.rows.row_type.__name__
    for name, missing in ((ROWS, not done.rows), (QUARANTINE, not done.refused)):
        if missing:
            (folder / name).unlink(missing_ok=True)  # of an earlier import
    write_json(folder / SUMMARY, done.summary(sources))
    return done


def _shown(detail: str) -> str:
    """Return a detail as it may go to a terminal: it can hold an id that a stranger made up."""
    return "".join(letter if letter.isprintable() else "?" for letter in detail)


def _check_names(domain: str, model: str | None) -> None:
    try:
        check_domain(domain, "--domain")
    except Refused as refused:
        raise InputError(refused.detail) from None
    try:
        if model is not None:
            as_model(model, "--model")
    except Refused as refused:
        raise InputError(f"{refused.detail}; name the model, or leave --model out") from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not is_ours(folder / SUMMARY, SUMMARY_KIND):
        raise InputError(f"--out {folder} holds something that fuseline import has not written; name another folder")


def _of_layout(records: Iterator[Found], layout: Layout) -> Iterator[Found]:
    """Hand the records on; where the first one is of another layout, say of which."""
    for number, (place, record) in enumerate(records):
        if number == 0 and not isinstance(record, Refused):
            columns = given(record)
            half = layout.missing_side(columns) is not None  # refused as such, also where it is the first one
            if not half and layout.form_of(columns) is None and (others := layouts_of(columns)):
                raise InputError(
                    f"{place} is not of layout {layout.name}, which needs {layout.needed()}; it has "
                    f"{shown(record)}, as in: --layout {' or '.join(others)}"
                )
        yield place, record


def _named(example: Example, model: str | None) -> Example:
    """Return the example with a name for every answer's model: the given one, or what stands for it."""
    return dataclasses.replace(
        example, answers=tuple(dataclasses.replace(a, model=_model(a, example, model)) for a in example.answers)
    )


def _model(answer: Answer, example: Example, given: str | None) -> str:
    usual = model_of(answer, example.kind)
    own = "target_chosen" in (a.role for a in example.answers) and not answer.role.startswith("source_")
    return given if given is not None and answer.model is None and not own else usual


class _Output:
    """The files of an import while they are written. They appear when the stack is left without an error."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        paths = {name: stack.enter_context(atomic_file(folder / name)) for name in (PROMPTS, ANSWERS, ROWS, QUARANTINE)}
        self._prompts, self._answers, self._refused = (
            stack.enter_context(paths[name].open("w", encoding="utf-8")) for name in (PROMPTS, ANSWERS, QUARANTINE)
        )
        self._rows_path = paths[ROWS]
        self._pending: list[Any] = []
        self.rows: RowFile | None = None
        self._digests: dict[str, str] = {}
        """Prompt id -> what its conversation says."""
        self._seen: Counter[str] = Counter()
        """Prompt id -> rows of it."""
        self._made: set[str] = set()
        """Row ids that are no prompt's own."""
        self._known: set[int] = set()
        """Hashes of the answers that are written already."""
        self._samples: Counter[tuple[str, str]] = Counter()
        self._examples: set[int] = set()
        """Hashes of the examples that are taken already."""
        self.num_repeated = self.num_prompts = self.num_answers = self.num_same = self.without_row = (
            self.without_scores
        ) = 0

    def add(self, example: Example) -> None:
        """Take an example. Raises Refused where it contradicts an earlier one or cannot be a row."""
        prompt = example.prompt
        digest = content_digest(prompt.messages)
        known = self._digests.get(prompt.prompt_id)
        if known not in (None, digest) or prompt.prompt_id in self._made:
            raise Refused("id_conflict", f"id {prompt.prompt_id!r} is also that of another prompt")
        self._row(example)
        if known is None:
            self._digests[prompt.prompt_id] = digest
            self._prompts.write(json_text(_prompt_record(prompt)) + "\n")
            self.num_prompts += 1
        for answer in example.answers:
            self._answer(prompt, answer)
        said = _short_hash(repr(example))
        self.num_repeated += said in self._examples
        self._examples.add(said)

    def _row(self, example: Example) -> None:
        """Take the training row that an example is, under an id that no other row has. Raises Refused."""
        prompt_id, number = example.prompt.prompt_id, self._seen[example.prompt.prompt_id] + 1
        row_id = prompt_id if number == 1 else f"{prompt_id}#{number}"  # stages tell rows apart by the prompt's id
        if number > 1 and (row_id in self._digests or row_id in self._made):
            raise Refused("id_conflict", f"row {number} of {prompt_id!r} would be {row_id!r}, the id of another prompt")
        try:
            row = row_of(dataclasses.replace(example, prompt=dataclasses.replace(example.prompt, prompt_id=row_id)))
        except ValueError as error:
            raise Refused("not_a_row", str(error)) from None
        if row is None:
            self.without_row += 1
            return
        self._take(row)
        self._seen[prompt_id] = number
        self._made |= {row_id} - {prompt_id}
        compared = example.kind is not Kind.sft  # an answer to imitate is set against no other
        self.without_scores += compared and any(a.score is None for a in example.answers if a.role != OTHER)

    def _take(self, row: Any) -> None:
        if self.rows is None:
            self.rows = RowFile(self._rows_path, type(row))
        if type(row) is not self.rows.row_type:
            if isinstance(row, PreferenceSet) and self.rows.row_type is PreferenceQuadruple:
                self._widen()
            elif isinstance(row, PreferenceQuadruple) and self.rows.row_type is PreferenceSet:
                row = as_set(row)
            else:
                found, first = type(row).__name__, self.rows.row_type.__name__
                raise Refused("other_row_type", f"the row is a {found}, those before it are {first} rows")
        self._pending.append(row)
        if len(self._pending) >= BATCH_ROWS:
            self._flush()

    def _widen(self) -> None:
        """Write the quadruples that are there anew as sets, because a set has come that is no quadruple."""
        assert self.rows is not None
        self._flush()
        self.rows.close()
        before = self._rows_path.with_name(f"{self._rows_path.name}.quadruples")
        self._rows_path.rename(before)
        try:
            self.rows = RowFile(self._rows_path, PreferenceSet)
            for row in read_rows(before):
                self._pending.append(as_set(row))
                if len(self._pending) >= BATCH_ROWS:
                    self._flush()
        finally:
            before.unlink()

    def _flush(self) -> None:
        assert self.rows is not None
        self.rows.write(self._pending)
        self._pending = []

    def _answer(self, prompt: Prompt, answer: Answer) -> None:
        """Write an answer, unless the same one of the same model was written before (rows of one prompt share some)."""
        assert answer.model is not None
        key = _short_hash("\0".join((prompt.prompt_id, answer.model, answer.text)))
        if key in self._known:
            self.num_same += 1
            return
        self._known.add(key)
        place = (prompt.prompt_id, answer.model)
        sample = self._samples[place] if answer.sample is None else answer.sample
        self._samples[place] += 1
        self._answers.write(json_text(_answer_record(prompt, answer, sample)) + "\n")
        self.num_answers += 1

    def refuse(self, place: str, refused: Refused) -> None:
        line = dataclasses.asdict(Quarantined(place, refused.reason, refused.detail))
        self._refused.write(json.dumps(line, ensure_ascii=True) + "\n")

    def close(self) -> None:
        """Write what is pending."""
        if self.rows is not None:
            self._flush()
            self.rows.close()


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _prompt_record(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as prompt sets read it."""
    record: Mapping[str, Any] = {
        "id": prompt.prompt_id,
        "domain": prompt.domain,
        "messages": [dataclasses.asdict(message) for message in prompt.messages],
        "reference": prompt.reference,
        "tests": list(prompt.tests) or None,
        "entry_point": prompt.entry_point,
        "dataset": prompt.dataset,
    }
    return dict(record)


def _answer_record(prompt: Prompt, answer: Answer, sample: int) -> dict[str, Any]:
    return {
        "id": prompt.prompt_id,
        "model": answer.model,
        "sample": sample,
        "response": answer.text,
        "role": answer.role,
        "score": answer.score,
        "scorer": answer.scorer,
        "verdict": None if answer.verdict is None else str(answer.verdict),
        "verdict_reason": answer.verdict_reason,
        "finish_reason": None if answer.finish_reason is None else str(answer.finish_reason),
    }
