"""The prompts stage run for real on small files, for tests of what it takes out."""

import json
from pathlib import Path

from fusion.artifact import Artifact
from fusion.promptsets import Clean, PromptSet
from fusion.promptsets.files import JsonlPrompts
from fusion.rows import Prompt
from fusion.stage import Stage, run_stage
from fusion.stages import prompts

EXACT = Clean(near_duplicates=None, decontaminate=None)
"""Only what is the same goes."""


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def prompt_set(path: Path, texts: list[str], **more) -> JsonlPrompts:
    """A set whose prompts are `texts`, with the ids `<file name>-0`, `<file name>-1`, ..."""
    rows = [{"id": f"{path.stem}-{i}", "prompt": text} for i, text in enumerate(texts)]
    return JsonlPrompts(path=write(path, rows), domain=more.pop("domain", "d"), **more)


def stage_of(slug: str, sets: tuple[PromptSet, ...], inputs: dict, clean: Clean) -> Stage:
    overlap = clean.decontaminate
    return Stage(
        kind="prompts",
        slug=slug,
        version=prompts.VERSION,
        config=prompts.PromptsConfig(
            sets=tuple(s.identity for s in sets),
            near_duplicates=clean.near_duplicates,
            overlap=overlap.rule if overlap else None,
            against=tuple(s.identity for s in overlap.against) if overlap else (),
        ),
        placement=prompts.PromptsPlacement(sets=sets, against=overlap.against if overlap else ()),
        inputs=inputs,
        run=prompts.run,
        row_type=Prompt,
        max_quarantined=0.5,
    )


def run(stage: Stage, root: Path, inputs: dict | None = None) -> Artifact:
    """Run one stage, or find it finished."""
    done, _ = run_stage(stage, root, inputs=inputs or {}, report=lambda p: None, resume_command="go")
    return done


def load(root: Path, *sets: PromptSet, clean: Clean = EXACT, held_out: PromptSet | None = None) -> Artifact:
    """The artifact of the training prompts of some sets."""
    given = {"held_out": stage_of("held-out", (held_out,), {}, EXACT)} if held_out else {}
    done = {name: run(stage, root / "store") for name, stage in given.items()}
    return run(stage_of("train", sets, given, clean), root / "store", done)


def kept(artifact: Artifact) -> list[str]:
    """Ids of the prompts that are left, in order."""
    return [p.prompt_id for p in artifact.rows(Prompt)]


def refused(artifact: Artifact) -> dict[str, tuple[str, str]]:
    """Row id -> reason and detail of each row that was taken out."""
    file = artifact.path / "quarantine.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["row_id"]: (line["reason"], line["detail"]) for line in lines}
