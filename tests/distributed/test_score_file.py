"""`fuseline score` on a real cluster: bits of the model alone, kills that lose and repeat nothing, jobs."""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bad_rows import BAD_LINES, save_odd_reward_model
from fusion.rewards import ClassifierSettings
from fusion.rewards.items import read_item
from ray_head import ROOT, environment, head_node, wait_for
from tiny_models import save_reward_model

pytestmark = pytest.mark.ray

NUM_ROWS = 300
WORDS = ["add", "sort", "reverse", "seven", "blue", "ünder", "中文", "42"]
OURS = ("id", "index", "response_index", "score", "tokens")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A directory with a reward model and 300 rows: all forms, and every kind of bad row."""
    root = tmp_path_factory.mktemp("w")
    save_odd_reward_model(root / "rm")
    rng = random.Random(5)
    bad = [line for line, _ in BAD_LINES.values()]
    lines = [json.dumps(good_row(i, rng)).encode() for i in range(NUM_ROWS - len(bad) - 2)] + bad
    rng.shuffle(lines)
    lines.insert(77, b'{"id": "row-3", "prompt": "the same id", "response": "again"}')
    (root / "rows.jsonl").write_bytes(b"\n".join([*lines, b'{"prompt": "torn off", "respo']))
    return root


def good_row(number: int, rng: random.Random) -> dict:
    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))

    own = {"id": f"row-{number}", "lang": rng.choice(["en", "de"]), "number": number, "model": "writer"}
    match number % 4:
        case 0:
            return {**own, "prompt": text(), "response": text()}
        case 1:
            return {**own, "prompt": text(), "responses": [text() for _ in range(rng.randint(1, 4))]}
        case 2:
            turns = [("system", text()), ("user", text()), ("assistant", text())]
            return {**own, "messages": [{"role": role, "content": content} for role, content in turns]}
        case _:
            return {**own, "prompt": [{"role": "user", "content": text()}], "completion": text()}


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[tuple[str, str]]:
    with head_node(tmp_path_factory.mktemp("head")) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def undisturbed(world, head) -> list[dict]:
    """What the command writes when nothing happens to it."""
    done = fuseline_score(world, "--out", "scores.jsonl", "--work", "work", "--chunk-rows", "40", address=head[0])
    assert done.returncode == 0, done.stdout + done.stderr
    (world / "first.log").write_text(done.stdout)
    return read_lines(world / "scores.jsonl")


def arguments(*args: str, address: str, rows: str = "rows.jsonl") -> list[str]:
    # Not on one of the four GPUs, which exist only in Ray's books.
    return [sys.executable, "-m", "jobs.run", "score", rows, "--model", "rm", "--accelerator", "cpu", "--address", address, *args]  # fmt: skip


def fuseline_score(root: Path, *args: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments(*args, **more),
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def work_directory(root: Path, work: str) -> Path:
    (found,) = (root / work / "score_file").glob("rm-*")
    return found


def test_every_response_has_the_score_of_its_conversation_alone_or_a_reason(world, undisturbed):
    reward = ClassifierSettings().load(world / "rm")
    expected, reasons, repeated = [], Counter(r for _, r in BAD_LINES.values()), set()
    bad = {line for line, _ in BAD_LINES.values()}
    for index, line in enumerate((world / "rows.jsonl").read_bytes().split(b"\n")[:-1]):
        if line in bad:
            continue
        record = json.loads(line)
        if record["id"] in repeated:
            reasons["duplicate_id"] += 1
            continue
        repeated.add(record["id"])
        for response_index, conversation in read_item(record).conversations:
            (alone,) = reward.score([conversation])
            assert alone.score is not None, alone
            expected.append((record["id"], index, response_index, alone.score, alone.num_tokens))
    assert [tuple(row[name] for name in OURS) for row in undisturbed] == expected
    assert len({row["score"] for row in undisturbed}) > 200, "the model tells texts apart"
    assert {(row["lang"] in ("en", "de"), row["input_model"], row["model"]) for row in undisturbed} == {
        (True, "writer", "rm")
    }
    reasons["torn_line"] += 1
    found = Counter(line["reason"] for line in read_lines(world / "scores.jsonl.quarantine.jsonl"))
    assert found == reasons and len(reasons) >= 15
    counts = json.loads((world / "scores.jsonl.json").read_text())["counts"]
    assert counts["rows"] == NUM_ROWS and counts["reasons"] == reasons
    assert (counts["scored"], counts["responses"]) == (len(expected), len(expected) + reasons.total())
    assert counts["tokens"] == sum(row[-1] for row in expected)
    said = f"{counts['responses']} in = {len(expected)} out + {reasons.total()} quarantined"
    assert said in (world / "first.log").read_text()


def test_a_second_run_is_a_hit_that_starts_nothing_and_writes_any_format(world, undisturbed):
    before = (world / "scores.jsonl").read_bytes()
    for out in ("scores.jsonl", "hit.parquet", "hit"):
        done = fuseline_score(world, "--out", out, "--work", "work", "--replicas", "2", address="127.0.0.1:1")
        assert done.returncode == 0 and done.stdout.startswith("hit "), done.stdout + done.stderr
    assert (world / "scores.jsonl").read_bytes() == before
    table = pq.read_table(world / "hit.parquet")
    assert table.select(OURS).to_pylist() == [{name: row[name] for name in OURS} for row in undisturbed]
    assert table.schema.field("number").type == pa.int64()
    assert pq.read_table(world / "hit").equals(table)


def test_damaged_work_is_named_and_not_written_out(world, undisturbed):
    part = work_directory(world, "work") / "part-00001.parquet"
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        done = fuseline_score(world, "--out", "damaged.jsonl", "--work", "work", address="127.0.0.1:1")
    finally:
        part.write_bytes(whole)
    assert done.returncode == 1 and "part-00001.parquet is damaged" in done.stderr and "--repair" in done.stderr
    assert not (world / "damaged.jsonl").exists()


def start(root: Path, *args: str, address: str) -> subprocess.Popen:
    return subprocess.Popen(
        arguments(*args, address=address),
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def num_parts(root: Path, work: str) -> int:
    return len(list((root / work / "score_file").glob("rm-*/part-*.parquet")))


def actors() -> list[psutil.Process]:
    """The processes of scoring actors, which the head node below this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and "MapWorker" in line:
                found.append(process)
    return found


@pytest.mark.serving
def test_a_killed_actor_loses_and_repeats_nothing(world, head, undisturbed):
    driver = start(world, "--out", "actor.jsonl", "--work", "w-actor", "--chunk-rows", "2", address=head[0])
    try:
        wait_for(lambda: num_parts(world, "w-actor") >= 3, driver)
        kept = {p.name: p.stat().st_mtime_ns for p in work_directory(world, "w-actor").glob("part-*.parquet")}
        killed = actors()
        assert killed, "no scoring actor was found"
        for process in killed:
            process.send_signal(signal.SIGKILL)
        assert num_parts(world, "w-actor") < NUM_ROWS // 2, "the kill came too late"
        out, err = driver.communicate(timeout=300)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 0, out + err
    check_same(world, "actor.jsonl", "w-actor", kept)


@pytest.mark.serving
def test_a_stopped_and_a_killed_driver_are_gone_on_with_by_the_same_command(world, head, undisturbed):
    args = ("--out", "driver.jsonl", "--work", "w-driver", "--chunk-rows", "2")
    stopped = start(world, *args, address=head[0])
    wait_for(lambda: num_parts(world, "w-driver") >= 3, stopped)
    began = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert stopped.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert (
        f"stopped by SIGTERM; resume with: fuseline score rows.jsonl --model rm --accelerator cpu --address {head[0]} "
        in err
    )
    assert shlex.join(args) in err
    first = num_parts(world, "w-driver")
    killed = start(world, *args, address=head[0])
    try:
        wait_for(lambda: num_parts(world, "w-driver") >= first + 3, killed)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    folder = work_directory(world, "w-driver")
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*.parquet")}
    assert len(kept) < NUM_ROWS // 2 and not (folder / "manifest.json").exists(), "the kill came too late"
    assert not (world / "driver.jsonl").exists()
    done = fuseline_score(world, *args, address=head[0])
    assert done.returncode == 0, done.stdout + done.stderr
    check_same(world, "driver.jsonl", "w-driver", kept)


def check_same(world: Path, out: str, work: str, kept: dict[str, int]) -> None:
    """Check that a disturbed run wrote what the undisturbed one did, and made no finished part again."""
    folder = work_directory(world, work)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept, "a finished part was made again"
    assert (world / out).read_bytes() == (world / "scores.jsonl").read_bytes()
    assert (world / f"{out}.quarantine.jsonl").read_bytes() == (world / "scores.jsonl.quarantine.jsonl").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows_in"] == manifest["rows_out"] + sum(manifest["quarantined"].values())


@pytest.mark.serving
def test_a_job_scores_a_parquet_file_under_another_key(world, head, undisturbed):
    """Rows from Parquet, and other content: the same scores by `ray job submit`, with paths from --base."""
    bad = {line for line, _ in BAD_LINES.values()}
    lines = [line for line in (world / "rows.jsonl").read_bytes().split(b"\n")[:-1] if line not in bad]
    records = [r for r in map(json.loads, lines) if "number" in r and r["number"] % 4 == 0][:40]
    pq.write_table(pa.Table.from_pylist(records), world / "some.parquet", row_group_size=7)
    command = ["python", "-m", "jobs.score", "some.parquet", "--model", "rm", "--out", "job.parquet", "--work", "work"]
    command += ["--accelerator", "cpu", "--chunk-rows", "6", "--base", str(world)]
    excludes = {"excludes": [".git", "tests", "docs", "runs", "**/__pycache__"]}
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        [
            scripts / "ray", "job", "submit", "--address", head[1], "--working-dir", str(ROOT),
            "--runtime-env-json", json.dumps(excludes), "--", *command,
        ],
        cwd=world,
        env={**environment(), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["id"]: row for row in pq.read_table(world / "job.parquet").to_pylist()}
    by_id = {row["id"]: row for row in undisturbed}
    assert list(found) == [r["id"] for r in records]
    for record in records:
        row = found[record["id"]]
        assert (row["score"], row["number"]) == (by_id[record["id"]]["score"], record["number"])
    assert len(list((world / "work" / "score_file").glob("rm-*"))) == 2


@pytest.mark.serving
def test_a_weighing_of_several_outputs(world, head):
    folder = save_reward_model(world / "several", id2label={0: "helpful", 1: "verbose", 2: "safe"}, num_labels=3)
    texts = ["a", "four", "It is 4.", "five 5"]
    rows = [{"id": text, "prompt": "2+2?", "response": text} for text in texts]
    (world / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = ["--objective", "helpful=1", "--objective", "verbose=-0.5", "--objectives"]
    asked = ["--model", "several", "--out", "several.jsonl", "--work", "w-several"]
    done = fuseline_score(world, *asked, *weights, rows="few.jsonl", address=head[0])
    assert done.returncode == 0, done.stdout + done.stderr
    settings = ClassifierSettings(objectives={"helpful": 1.0, "verbose": -0.5})
    expected = settings.load(folder).score([c for row in rows for _, c in read_item(row).conversations])
    found = [(row["score"], row["objectives"]) for row in read_lines(world / "several.jsonl")]
    assert found == [(each.score, each.objectives) for each in expected]
    assert json.loads((world / "several.jsonl.json").read_text())["settings"]["objectives"] == settings.objectives
