"""`fuseline score`: what is wrong with its options is one line, before Ray is asked for anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.errors import InputError
from jobs.score_driver import parse_weights
from tiny_models import save_reward_model

ROOT = Path(__file__).parents[2]


def test_weights_are_read_by_name():
    assert parse_weights(["helpful=1", "a=b=-0.5", "c=1e-3"]) == {"helpful": 1.0, "a=b": -0.5, "c": 0.001}
    assert parse_weights([]) == {}


@pytest.mark.parametrize("given", ["helpful", "=1", "helpful=", "helpful=much", "helpful=nan", "helpful=inf"])
def test_a_weight_that_is_none_is_said(given):
    with pytest.raises(InputError, match="write it as NAME=WEIGHT") as caught:
        parse_weights([given])
    assert given in str(caught.value)


def test_a_name_that_is_given_twice_is_said():
    with pytest.raises(InputError, match="names a twice"):
        parse_weights(["a=1", "a=2"])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("w")
    save_reward_model(root / "several", id2label={0: "helpful", 1: "verbose"}, num_labels=2)
    save_reward_model(root / "one")
    (root / "rows.jsonl").write_text('{"prompt": "q", "response": "a"}\n')
    return root


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("several", [], "2 outputs (helpful, verbose); say which make the score"),
        ("several", [], "--objective helpful=1.0"),
        ("several", ["--objective", "helpfull=1"], "no output is named 'helpfull'; there are: helpful, verbose"),
        ("one", ["--objective", "helpful=1"], "no output is named 'helpful'; there are: LABEL_0"),
        ("one", ["--objective", "helpful"], "--objective helpful: write it as NAME=WEIGHT"),
    ],
)
def test_outputs_are_named_before_ray_is_started(world, model, options, said):
    # Nothing listens at that address: had it been asked, the message would be another one.
    command = ["score", "rows.jsonl", "--model", model, "--out", "out.jsonl", "--address", "127.0.0.1:1", *options]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.run", *command],
        cwd=world,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert said in done.stderr
