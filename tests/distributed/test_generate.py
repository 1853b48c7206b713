"""Generate on a real Ray cluster with real engines: nothing lost, nothing twice, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

import faulty
import generate_world
from fusion.artifact import Artifact
from fusion.chat import Chat, ChatConfig
from fusion.errors import StageError
from fusion.rows import Finish, Response
from fusion.sampling import sample_seed
from fusion.stage import Progress
from generate_world import DECODINGS, NUM_SAMPLES, World
from tiny_models import save_chat_model

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A local cluster with four GPUs that exist only in Ray's books."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    os.environ.update(environment)
    workers = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}
    context = ray.init(
        num_cpus=8, num_gpus=4, include_dashboard=False, _temp_dir=f"/tmp/r-{os.getpid()}", log_to_driver=False,
        runtime_env=workers,
    )  # fmt: skip
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def fresh_model(tmp_path: Path, model: Path) -> Path:
    """The model under a root of this test, so that its engines' notes are its own."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(model)
    return save_chat_model(tmp_path / "own" / "tiny")


def rows_of(artifact: Artifact) -> dict[str, Response]:
    rows = list(artifact.rows(Response))
    assert not [row_id for row_id, n in Counter(r.row_id for r in rows).items() if n > 1]
    return {row.row_id: row for row in rows}


def expected(name: str, prompt_ids: tuple[str, ...]) -> set[str]:
    return {f"{prompt_id}/{name}/{sample}" for prompt_id in prompt_ids for sample in range(NUM_SAMPLES)}


def leftovers(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name.endswith(".tmp") or p.name == "journal")


def test_two_stages_at_once_give_every_row_once_with_its_own_seed_and_the_ids_of_the_chat(
    tmp_path: Path, fresh_model: Path
) -> None:
    # More than 4,096 tokens at once: an engine that prefills prompts in pieces fails on seeded rows on CPUs.
    good = (*(f"p{i}" for i in range(6)), *(f"wide/{i}" for i in range(24)))
    prompt_ids = (*good, "long/1", "answered/1")
    world = World(tmp_path / "store", fresh_model, prompt_ids)
    other = World(tmp_path / "again", fresh_model, prompt_ids)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(
            world.generate, "a", sampler=faulty.NotingSampler, replicas=2, accelerator="gpu", gpu_memory_share=0.25,
            chunk_rows=48,
        )  # fmt: skip
        second = pool.submit(other.generate, "a", chunk_rows=512)
        artifact, again = first.result(), second.result()

    rows = rows_of(artifact)
    assert set(rows) == expected("a", good)
    assert artifact.manifest.quarantined == {"prompt_too_long": NUM_SAMPLES, "render_error": NUM_SAMPLES}
    assert leftovers(artifact.path) == []

    chat = Chat.load(fresh_model, ChatConfig())
    notes = faulty.read_notes(fresh_model)
    assert [n["gpus"] for n in notes if "gpus" in n] == [0.25, 0.25], "two engines, each with its share of a GPU"
    asked = {n["row"]: n for n in notes if "row" in n}
    assert set(asked) == set(rows)
    for row_id, row in rows.items():
        decoding = DECODINGS[0] if row.sample < 2 else DECODINGS[1]
        ids = chat.encode_prompt(generate_world.messages(row.prompt_id))
        assert tuple(asked[row_id]["ids"]) == ids
        assert row.num_prompt_tokens == len(ids)
        assert asked[row_id]["seed"] == row.seed == sample_seed(3, row.prompt_id, row.sample)
        assert (row.decoding, row.model) == (decoding.name, "a")
        assert (row.token_ids[-1] in chat.stop_ids) == (row.finish_reason == Finish.stop)
        assert row.finish_reason == Finish.stop or len(row.token_ids) == decoding.max_tokens
        assert not set(row.token_ids[:-1]) & set(chat.stop_ids)
        assert row.text == chat.decode(row.token_ids)
    assert artifact.manifest.notes["tokens"] == sum(len(r.token_ids) for r in rows.values())
    assert artifact.manifest.notes["engine"]["device"] == "cpu", "GPUs in Ray's books only"

    assert rows_of(again) == rows, "other replicas and chunks, same seed, same draws"


def test_killed_engine_process_loses_and_doubles_nothing(tmp_path: Path, fresh_model: Path) -> None:
    prompt_ids = tuple(f"p{i}" for i in range(40))
    world = World(tmp_path / "store", fresh_model, prompt_ids)
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        if progress.done and not killed:
            killed.append(faulty.read_notes(fresh_model)[-1]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    artifact = world.generate("killed-engine", sampler=faulty.NotingSampler, report=kill_once, chunk_rows=8)
    assert killed
    assert set(rows_of(artifact)) == expected("killed-engine", prompt_ids)
    assert artifact.manifest.quarantined == {}
    pids = {n["pid"] for n in faulty.read_notes(fresh_model)}
    assert len(pids) == 2, "the engine was started once more"
    assert leftovers(artifact.path) == []


def test_row_that_fails_every_engine_is_quarantined_and_all_others_finish(tmp_path: Path, fresh_model: Path) -> None:
    prompt_ids = tuple(f"p{i}" for i in range(8))
    world = World(tmp_path / "store", fresh_model, prompt_ids)
    artifact = world.generate("poisoned", sampler=faulty.PoisonedSampler, chunk_rows=12)
    assert set(rows_of(artifact)) == expected("poisoned", prompt_ids) - {faulty.POISON}
    assert artifact.manifest.quarantined == {"engine_crash": 1}
    (line,) = (artifact.path / "quarantine.jsonl").read_text().splitlines()
    assert faulty.POISON in line
    assert "illegal memory access" in line
    assert len({n["pid"] for n in faulty.read_notes(fresh_model)}) == 4, "in company, in a group, alone, and without"
    assert leftovers(artifact.path) == []


def test_killed_driver_resumes_with_the_missing_chunks_only(tmp_path: Path, model: Path, cluster: str) -> None:
    prompt_ids = tuple(f"p{i}" for i in range(150))
    world = World(tmp_path, model, prompt_ids)
    command = [sys.executable, generate_world.__file__, cluster, str(tmp_path), str(model), str(len(prompt_ids))]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ) as driver:
        while driver.poll() is None and not list(tmp_path.glob("generate/*/part-*.parquet")):
            time.sleep(0.02)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    time.sleep(1.0)  # its workers are on their way out
    parts = {p.name: p.stat().st_ino for p in world.directory("killed").glob("part-*.parquet")}
    assert 0 < len(parts) < 29
    seen: list[int] = []
    artifact = world.generate("killed", report=lambda progress: seen.append(progress.done))
    assert seen[0] == 16 * len(parts) or 28 * 16 < 450 < seen[0] + 16
    assert set(rows_of(artifact)) == expected("killed", prompt_ids)
    assert artifact.manifest.quarantined == {}
    assert {
        n: i for n, i in ((p.name, p.stat().st_ino) for p in artifact.path.glob("part-*.parquet")) if n in parts
    } == parts
    assert leftovers(artifact.path) == []


def test_engine_that_cannot_start_ends_the_stage_with_one_line(tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "own" / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(StageError) as failure:
        World(tmp_path / "store", folder, ("p0",)).generate("broken")
    first, *rest = str(failure.value).splitlines()
    assert "cannot start" in first
    assert str(folder) in first
    assert len(rest) == 1
    assert "resume with: again" in rest[0]


def test_engines_that_die_at_every_start_end_the_stage(tmp_path: Path, model: Path) -> None:
    with pytest.raises(StageError, match=r"died \d+ times in a row without finishing a row"):
        World(tmp_path, model, ("p0",)).generate("stillborn", sampler=faulty.StillbornSampler)
    assert not list(tmp_path.glob("generate/*/manifest.json"))
