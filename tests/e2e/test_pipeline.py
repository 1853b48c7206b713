"""A small recipe from prompts to an exported model, with the real engines: run, re-run, change, damage, kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fusion.artifact import Artifact
from fusion.rows import Response
from jobs.demo.random_models import build
from ray_head import environment, head_node, wait_for

pytestmark = pytest.mark.ray

FUSELINE = (sys.executable, "-m", "jobs.run")
NUM_PROMPTS = 24


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A directory with models, prompts and a recipe, and one finished run in it."""
    root = tmp_path_factory.mktemp("p")
    build(root / "models", seed=0)
    lines = [json.dumps({"id": f"q{i}", "prompt": f"question {i} ümläut 中"}) for i in range(NUM_PROMPTS)]
    lines.append(json.dumps({"id": "bad", "prompt": ""}))
    (root / "prompts.jsonl").write_text("\n".join(lines))
    (root / "held.jsonl").write_text("\n".join(json.dumps({"prompt": f"held {i}"}) for i in range(4)))
    training = {"learning_rate": 1e-3, "global_batch": 4, "max_length": 256}
    recipe = {
        "name": "small",
        "seed": 3,
        "root": "runs",
        "target": {"path": "models/target"},
        "sources": {"llama": {"path": "models/llama"}, "gemma2": {"path": "models/gemma2"}},
        "prompts": [{"type": "jsonl", "path": "prompts.jsonl", "domain": "d"}],
        "sampling": {"temperature": 1.0, "max_tokens": 12, "num_samples": 2},
        "dtype": "float32",
        "max_model_len": 256,
        "score": {"*": {"type": "python", "function": "jobs.demo.readable:score", "version": 1}},
        "split": {"sft": 1, "preference": 2},
        "sft": {"select": {"type": "best", "allow_length": True}, **training},
        "arms": {
            "wrpo": {
                "select": {"type": "quadruple", "allow_length": True},
                "loss": {"type": "wrpo", "beta": 0.1, "alpha": {"from": 0.0, "to": 0.5}},
                **training,
            },
        },
        "evaluate": {
            "prompts": [{"type": "jsonl", "path": "held.jsonl", "domain": "d"}],
            "decodings": [
                {"name": "sample", "num_samples": 2, "max_tokens": 8},
                {"name": "greedy", "temperature": 0.0, "max_tokens": 8},
            ],
        },
        "serve": {"arm": "wrpo"},
        "placement": {"parallel_stages": 2, "generate": {"chunk_rows": 4}, "train": {"checkpoint_every_steps": 2}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = fuseline(root, "run", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "first.log").write_text(done.stdout)
    return root


def fuseline(root: Path, *args: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*FUSELINE, *args],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        **more,
    )


def states(root: Path, *args: str) -> dict[str, str]:
    """stage label -> state, as `explain` prints them."""
    done = fuseline(root, "explain", "recipe.yaml", *args)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    return {line[0]: line[2] for line in lines}


def directory(root: Path, stage: str, slug: str) -> Path:
    (found,) = (root / "runs" / "store" / stage).glob(f"{slug}-*")
    return found


def test_the_run_printed_and_wrote_its_accounts(project):
    summary = json.loads((project / "runs/small/summary.json").read_text())
    assert set(summary["models"]) == {"target", "sft", "wrpo", "llama", "gemma2"}
    for stage in summary["stages"]:
        manifest = json.loads((directory(project, *stage["stage"].split("/")) / "manifest.json").read_text())
        out = manifest["rows_out"]
        assert stage["rows_in"] == out + stage["quarantined"], stage
    prompts = next(s for s in summary["stages"] if s["stage"] == "prompts/train")
    assert (prompts["rows_in"], prompts["reasons"]) == (NUM_PROMPTS + 1, {"empty_prompt": 1})
    assert "25 in = 24 out + 1 quarantined (empty_prompt 1)" in (project / "first.log").read_text()
    report = (project / "runs/small/report.html").read_text()
    assert "wrpo" in report and "http://" not in report.replace("http://www.w3.org", "")


def test_the_exported_folder_is_a_plain_model_with_stop_ids(project):
    folder = project / "runs/small/model"
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"):
        assert (folder / name).is_file(), name
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert isinstance(stops, list) and stops


def test_a_second_run_does_no_work_and_starts_no_ray(project):
    done = fuseline(project, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " in = " in line]
    assert lines and all(line.startswith("hit") for line in lines), done.stdout


def test_beta_moves_its_arm_and_what_follows_and_explain_names_it(project):
    changed = states(project, "--set", "arms.wrpo.loss.beta=0.5")
    new = {stage for stage, state in changed.items() if state == "new"}
    assert new == {
        "prefer/wrpo",
        "generate/held_out-wrpo",
        "score/held_out-wrpo",
        "evaluate/held_out",
        "export/wrpo",
    }
    explained = fuseline(project, "explain", "recipe.yaml", "--set", "arms.wrpo.loss.beta=0.5").stdout
    assert "config.train.loss.beta: 0.1 -> 0.5" in explained


def test_placement_moves_nothing(project):
    sets = ["placement.parallel_stages=1", "placement.train.workers=2", "placement.generate.replicas=3"]
    changed = states(project, *(arg for s in sets for arg in ("--set", s)))
    assert set(changed.values()) == {"hit"}


def made(printed: str) -> set[str]:
    """Labels of the stages that a run did not find finished."""
    return {line.split()[2] for line in printed.splitlines() if line.startswith("done ")}


def test_a_deleted_part_is_named_and_repaired_and_moves_only_what_follows(project, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(project, root, symlinks=True)
    part = directory(root, "generate", "llama") / "part-00001.parquet"
    before = Counter(r.row_id for r in Artifact.load(part.parent).rows(Response))
    part.unlink()
    refused = fuseline(root, "run", "recipe.yaml")
    assert refused.returncode == 1
    assert "part-00001.parquet is listed in manifest.json but missing; run again with --repair" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = fuseline(root, "run", "recipe.yaml", "--repair")
    assert done.returncode == 0, done.stderr
    assert made(done.stdout) == {"generate/llama"}, "the same seeds give the same bytes, so nothing below moves"
    assert Counter(r.row_id for r in Artifact.load(part.parent).rows(Response)) == before


def test_a_driver_killed_in_generate_loses_and_repeats_nothing(project, tmp_path):
    root = tmp_path / "killed"
    shutil.copytree(project, root, symlinks=True)
    folder = directory(root, "generate", "llama")
    whole = list(Artifact.load(folder).rows(Response))
    num_parts = len(list(folder.glob("part-*.parquet")))
    shutil.rmtree(folder)
    driver = subprocess.Popen(
        [*FUSELINE, "run", "recipe.yaml", "--set", "placement.generate.concurrent_chunks=1"],
        cwd=root,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: any(folder.glob("part-*.parquet")), driver)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*.parquet")}
    assert 0 < len(kept) < num_parts and not (folder / "manifest.json").exists(), "the kill came too late"
    done = fuseline(root, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert {n: (folder / n).stat().st_mtime_ns for n in kept} == kept, "a finished part was made again"
    assert list(Artifact.load(folder).rows(Response)) == whole
    assert made(done.stdout) == {"generate/llama"}, "the same bytes as without the kill, so nothing below moves"


BAD = {
    "misspelt field": (["--set", "arms.wrpo.loss.betta=1"], "unknown field 'betta'; did you mean 'beta'"),
    "no such recipe": (["none.yaml"], "recipe none.yaml does not exist"),
    "prompts file missing": (
        ["--set", "prompts=[{type: jsonl, path: no.jsonl, domain: d}]"],
        "no.jsonl does not exist",
    ),
    "model folder missing": (["--set", "target={path: nowhere}"], "model folder nowhere does not exist"),
    "model without weights": (["--set", "target={path: bare}"], "bare has no *.safetensors file"),
    "model with torn config": (["--set", "target={path: torn}"], "config.json is not readable JSON"),
    "scorer missing": (
        ["--set", "score={'*': {type: python, function: 'nowhere:f', version: 9}}"],
        "module nowhere cannot be imported",
    ),
    "placeholder": (
        ["--set", "target={path: null, repo: o/n, revision: '<40 hex>'}"],
        "revisions are placeholders: target (o/n)",
    ),
    "no such cluster": (["--address", "127.0.0.1:1", "--set", "seed=99"], "no Ray cluster at 127.0.0.1:1"),
    "does not fit": (
        ["--set", "seed=99", "--set", "placement.train={workers: 4, accelerator: gpu}"],
        "does not fit: it asks for 4 actors with 1 CPU and 1 GPU each",
    ),
}


@pytest.mark.parametrize(("args", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(project, args, message):
    for name in ("bare", "torn"):
        (project / name).mkdir(exist_ok=True)
    shutil.copy(project / "models/target/config.json", project / "bare/config.json")
    (project / "torn/config.json").write_text('{"a": ')
    done = fuseline(project, "run", "recipe.yaml", *args)
    assert message in done.stderr, done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout


# ---- on a cluster -----------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path) -> Iterator[tuple[str, str]]:
    with head_node(tmp_path) as addresses:
        yield addresses


def test_a_job_is_submitted_once_and_changes_run_on_logical_gpus(project, tmp_path, head):
    root = tmp_path / "submitted"
    shutil.copytree(project, root, symlinks=True)
    (root / ".rayignore").write_text("runs\nmodels\n")
    submit = ("submit", "recipe.yaml", "--address", head[1])
    num_stages = len(json.loads((root / "runs/small/summary.json").read_text())["stages"])

    first = fuseline(root, *submit)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"{num_stages} stages, {num_stages} finished before" in first.stdout
    assert first.stdout.rstrip().endswith("-a1 succeeded")
    second = fuseline(root, *submit)
    assert (second.returncode, second.stdout.count("\n")) == (0, 1), second.stdout + second.stderr
    assert "-a1 has succeeded before; nothing to do" in second.stdout

    llama = directory(root, "generate", "llama")
    before = Artifact.load(llama).manifest.digest
    shutil.rmtree(llama)
    sets = (
        "serve=null",
        "arms.wrpo.loss.beta=0.5",
        "placement.generate={accelerator: gpu, replicas: 2, tensor_parallel: 1, chunk_rows: 4}",
        "placement.train={accelerator: gpu, workers: 2}",
    )
    third = fuseline(root, *submit, *(arg for s in sets for arg in ("--set", s)))
    assert third.returncode == 0, third.stdout + third.stderr
    follows = {"prefer/wrpo", "generate/held_out-wrpo", "score/held_out-wrpo", "evaluate/held_out"}
    assert made(third.stdout) == {"generate/llama", *follows}
    manifest = Artifact.load(llama).manifest
    assert (manifest.digest, manifest.notes["engine"]["device"]) == (before, "cpu")
