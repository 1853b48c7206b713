"""The vLLM backend of reward models gives the scores of transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import NO_NEWLINE, save_reward_model

pytestmark = pytest.mark.ray

# In a process of its own: an engine cannot be taken down again inside the one that runs the tests.
PROGRAM = """
import random, sys
from pathlib import Path
from fusion.rewards import ClassifierSettings
from fusion.rows import Message
from fusion.stages.classify_vllm import load_with_vllm

rng = random.Random(5)
text = lambda: "".join(rng.choices("abcdefg ", k=rng.randint(1, 120)))
asked = [(Message("user", text()), Message("assistant", text())) for _ in range(24)]
settings = ClassifierSettings(max_length=200, backend="vllm")
plain = settings.load(Path(sys.argv[1])).score(asked)
engine = load_with_vllm(settings, Path(sys.argv[1]), num_threads=1).score(asked)
assert [(r.num_tokens, r.error_code) for r in plain] == [(r.num_tokens, r.error_code) for r in engine]
pairs = [(a.score, b.score) for a, b in zip(plain, engine) if a.score is not None]
print(len(pairs), max(a for a, _ in pairs) - min(a for a, _ in pairs), max(abs(a - b) for a, b in pairs))
"""


@pytest.mark.parametrize(
    ("architecture", "fields"),
    # In the second, pad and end of turn are one token and it ends every conversation.
    [("Llama", {}), ("Qwen2", {"pad_token_id": 258, "template": NO_NEWLINE})],
)
def test_vllm_equals_transformers(tmp_path, architecture, fields):
    folder = save_reward_model(tmp_path / "rm", architecture=architecture, **fields)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    num_scored, spread, difference = done.stdout.strip().splitlines()[-1].split()
    assert int(num_scored) > 12 and float(spread) > 0.3
    assert float(difference) < 1e-5
