"""A service whose keys are given on the command line: who has none is not answered, before and after a swap."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from jobs.keys import add
from served import ENV, Service
from tiny_models import save_reward_model

pytestmark = [pytest.mark.ray, pytest.mark.serving]

ROOT = Path(__file__).parents[2]
APP = f"keyed-{os.getpid()}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a config that names no key, a key file, and its key."""
    root = tmp_path_factory.mktemp("keyed")
    models = {"reward": {"folder": str(save_reward_model(root / "rm", architecture="Qwen3"))}}
    log = {"access_log": str(root / "access.jsonl")}
    (root / "serve.yaml").write_text(
        yaml.safe_dump({"rewards": models, "app_name": APP, "accelerator": "cpu", "observability": log})
    )
    return root, add(root / "keys.yaml", name="ci", scopes=["reward"])


def test_keys_of_the_command_line_guard_the_service_and_its_swaps(world):
    root, key = world
    command = ["serve", str(root / "serve.yaml"), "--keys-file", str(root / "keys.yaml"), "--public"]
    with Service.run("jobs.run", *command) as service:
        assert service.process.stdout is not None
        page, log, curl = (service.process.stdout.readline() for _ in range(3))
        assert (page, log) == (f"page: {service.url}/ui\n", f"access log: {root / 'access.jsonl'}\n")
        check_guarded(service.url, key)
        assert (told(curl, None), told(curl, key)) == (401, 200)

        refused = swap(root)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "the running service asks for keys, and these files name none; give --keys-file" in refused.stderr
        check_guarded(service.url, key)
        done = swap(root, "--keys-file", str(root / "keys.yaml"), "--public")
        assert done.returncode == 0, done.stdout + done.stderr
        check_guarded(service.url, key)
    lines = [json.loads(line) for line in (root / "access.jsonl").read_text().splitlines()]
    assert {line.get("key") for line in lines if line["status"] == 200 and line["route"] == "/v1/models"} == {"ci"}
    assert key not in (root / "access.jsonl").read_text()


def swap(root, *more):
    return subprocess.run(
        [sys.executable, "-m", "jobs.run", "serve", str(root / "serve.yaml"), "--swap", *more],
        cwd=ROOT, env={**os.environ, **ENV}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def check_guarded(url, key):
    """Ask without a key, with another one and with the right one; `--public` also takes the API's own page away."""
    bearers = {None: 401, "fl-" + "x" * 40: 401, key: 200}
    for bearer, status in bearers.items():
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == status
    assert httpx.get(f"{url}/docs", headers={"authorization": f"Bearer {key}"}).status_code == 404


def told(curl, key):
    """Ask as the welcome says, without curl: the status of the answer."""
    url, sent = re.search(r"curl -s (\S+) .*-d '(.*)'$", curl.strip()).groups()
    assert '-H "Authorization: Bearer $FUSELINE_API_KEY"' in curl
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(url, json=json.loads(sent), headers=headers).status_code
