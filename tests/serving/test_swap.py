"""A running service gets other models under load: no request fails, none is answered by two models at once.

Real Ray Serve, vLLM and reward models in processes of their own, started and swapped as people do it.
"""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

from fusion.rewards import ClassifierSettings
from fusion.rows import Message
from tiny_models import save_chat_model, save_reward_model

pytestmark = [pytest.mark.ray, pytest.mark.serving, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
APP = f"swap-{os.getpid()}"
PROMPT, RESPONSES = "What is 2 + 2?", ["It is 4.", "It is five, as everybody knows."]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24, "temperature": 0}
REWARDS = {"model": "rm", "input": [{"prompt": PROMPT, "responses": RESPONSES}]}


def fuseline(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.run", *map(str, arguments)],
        cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def canary(folder):
    """Return `RESPONSES` as this random model ranks them."""
    reward = ClassifierSettings().load(folder, device="cpu")
    scores = reward.score([(Message("user", PROMPT), Message("assistant", r)) for r in RESPONSES], truncation="error")
    worse, better = (text for _, text in sorted(zip([s.score for s in scores], RESPONSES, strict=True)))
    return {"prompt": PROMPT, "better": better, "worse": worse}


def config(path, chat, reward, port, *, reverse=False):
    pair = canary(reward)
    if reverse:
        pair = {**pair, "better": pair["worse"], "worse": pair["better"]}
    models = {"rewards": {"rm": {"folder": str(reward), "canary": pair}}}
    if chat is not None:
        models["chat"] = {"tiny": {"folder": str(chat), "engine": {"max_num_seqs": 8}}}
    path.write_text(yaml.safe_dump({**models, "port": port, "app_name": APP, "accelerator": "cpu"}))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_chat_model(root / f"chat{seed}", seed=seed, initializer_range=0.4)
        save_reward_model(root / f"rm{seed}", seed=seed, architecture="Qwen3")
    return root


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def service(models, port):
    path = config(models / "old.yaml", models / "chat0", models / "rm0", port)
    process = fuseline("serve", path)
    try:
        assert process.stdout is not None and process.stderr is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "/v1/rewards" in line:
                break
        assert process.poll() is None and lines, "".join(lines) + process.stderr.read()
        # Nobody reads what it says later, and a full pipe would stop it.
        for stream in (process.stdout, process.stderr):
            threading.Thread(target=collections.deque, args=(stream, 0), daemon=True).start()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()


class Load:
    """Clients that ask all the time; `failed` and `answers` are what they saw."""

    def __init__(self, url):
        self.url, self.failed, self.ended = url, [], threading.Event()
        self.answers = collections.defaultdict(collections.Counter)
        self.threads = [threading.Thread(target=self.ask, args=(one,)) for one in (self.chat, self.stream, self.score)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        for thread in self.threads:
            thread.join(90)
            assert not thread.is_alive(), "a request hangs"

    def ask(self, one):
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.ended.is_set():
                try:
                    revision, said = one(client)
                    self.answers[one.__name__, revision][said] += 1
                except Exception as error:
                    self.failed.append(f"{one.__name__}: {error!r}")
                time.sleep(0.25)

    def chat(self, client):
        answer = client.post("/v1/chat/completions", json=CHAT).raise_for_status().json()
        return answer["system_fingerprint"], answer["choices"][0]["message"]["content"]

    def stream(self, client):
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            answer.raise_for_status()
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [yaml.safe_load(line) for line in lines[:-1]]
        (revision,) = {chunk["system_fingerprint"] for chunk in chunks}
        return revision, "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])

    def score(self, client):
        answer = client.post("/v1/rewards", json=REWARDS).raise_for_status().json()
        return answer["model_revision"], tuple(result["score"] for result in answer["results"])


def revisions(url):
    return {card["id"]: card["revision"] for card in httpx.get(f"{url}/v1/models").json()["data"]}


def test_other_models_come_without_a_failed_request(service, models, port):
    old = revisions(service)
    path = config(models / "new.yaml", models / "chat1", models / "rm1", port)
    with Load(service) as load:
        time.sleep(3)
        swap = fuseline("serve", path, "--swap")
        said, errors = swap.communicate(timeout=600)
        assert swap.returncode == 0, said + errors
        time.sleep(3)
    new = revisions(service)
    assert load.failed == []
    assert f"tiny: {old['tiny']} -> {new['tiny']}\nrm: {old['rm']} -> {new['rm']}\n" in said
    assert (old["tiny"] != new["tiny"], old["rm"] != new["rm"]) == (True, True)
    for kind, name in (("chat", "tiny"), ("stream", "tiny"), ("score", "rm")):
        seen = {revision: set(said) for (one, revision), said in load.answers.items() if one == kind}
        assert seen.keys() == {old[name], new[name]}
        # Greedy answers and scores: one per revision, so each answer is its revision's own.
        assert all(len(said) == 1 for said in seen.values()), seen
        assert seen[old[name]] != seen[new[name]]
    # What a score must be, from the folder and without the service.
    reward = ClassifierSettings().load(models / "rm1", device="cpu")
    conversations = [(Message("user", PROMPT), Message("assistant", r)) for r in RESPONSES]
    expected = [s.score for s in reward.score(conversations, truncation="error")]
    (scores,) = load.answers["score", new["rm"]]
    assert list(scores) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("fault", ["weights", "canary"])
def test_models_that_are_not_sound_never_serve(service, models, port, tmp_path, fault):
    """After the swap above: the service has the second models, and gets a third one that is broken."""
    from safetensors.torch import load_file, save_file

    before = revisions(service)
    reward = save_reward_model(tmp_path / "rm", seed=2)
    path = config(tmp_path / "new.yaml", models / "chat1", reward, port, reverse=fault == "canary")
    if fault == "weights":
        weights = load_file(reward / "model.safetensors")
        weights.pop("model.layers.1.mlp.up_proj.weight")
        save_file(weights, reward / "model.safetensors", metadata={"format": "pt"})
    with Load(service) as load:
        swap = fuseline("serve", path, "--swap")
        _, errors = swap.communicate(timeout=600)
    assert swap.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    expected = "model.layers.1.mlp.up_proj.weight" if fault == "weights" else "its canary pair is in the wrong order"
    assert expected in line and line.endswith("; the old models are still served")
    assert "Traceback" not in errors
    assert load.failed == []
    assert revisions(service) == before
    assert httpx.get(f"{service}/readyz").status_code == 200


def test_one_swap_at_a_time_and_one_that_was_killed_is_made_up_for(service, models, port, tmp_path):
    """The second one finds the first one waiting, is told so, and comes again when the first one was killed."""
    before = revisions(service)
    path = config(tmp_path / "new.yaml", models / "chat1", models / "rm0", port)
    with Load(service) as load:
        first = fuseline("serve", path, "--swap")
        assert first.stdout is not None
        assert "starting reward:rm:" in first.stdout.readline()
        first.send_signal(signal.SIGSTOP)
        try:
            second = fuseline("serve", path, "--swap")
            said, errors = second.communicate(timeout=300)
        finally:
            first.kill()
            first.communicate()
        assert second.returncode == 75, said + errors
        expected = f"error: another swap of '{APP}' is under way; start this one when it has ended"
        assert expected in errors.splitlines() and "Traceback" not in errors
        assert revisions(service) == before
        third = fuseline("serve", path, "--swap")
        said, errors = third.communicate(timeout=600)
        assert third.returncode == 0, said + errors
    after = revisions(service)
    assert (after["tiny"], after["rm"]) == (before["tiny"], said.splitlines()[-1].split(" -> ")[1])
    assert after["rm"] != before["rm"]
    assert load.failed == []


def test_a_service_whose_canary_is_reversed_does_not_start(models, port, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    path = config(tmp_path / "serve.yaml", None, models / "rm0", free, reverse=True)
    process = fuseline("serve", path, "--set", "app_name=reversed")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "the service cannot become ready: rm is refused: its canary pair is in the wrong order" in line
    with pytest.raises(httpx.ConnectError), contextlib.closing(httpx.Client()) as client:
        client.get(f"http://127.0.0.1:{free}/healthz")
