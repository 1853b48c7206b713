"""The README has the examples that `tests/e2e/test_serve.py` runs, and they are found as they are written."""

import re
from pathlib import Path

import pytest

from readme import NAMES, ROOT, examples

FENCE = "```"
TEXT = f"""\
# x

{FENCE}bash
never run
{FENCE}

<!-- run: curl -->
{FENCE}bash
curl -s http://127.0.0.1:8000/healthz
echo localhost:8000 localhost:80001
{FENCE}

Text between.

<!-- run: score -->
{FENCE}bash
fuseline score data/rows.jsonl \\
  --dtype float32 --model runs/reward --out scores.jsonl
{FENCE}
<!-- run: say -->
{FENCE}python
print("http://127.0.0.1:8000/v1")
{FENCE}
"""


def test_marked_blocks_are_found_and_asked_at_the_tests_port(tmp_path):
    found = examples(TEXT)
    assert {name: each.language for name, each in found.items()} == {"curl": "bash", "score": "bash", "say": "python"}
    assert found["curl"].at("http://127.0.0.1:9") == (
        "curl -s http://127.0.0.1:9/healthz\necho 127.0.0.1:9 localhost:80001\n"
    )
    assert found["score"].score_files() == (Path("data/rows.jsonl"), Path("runs/reward"))
    assert found["say"].run("http://127.0.0.1:9", tmp_path) == "http://127.0.0.1:9/v1\n"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("false | cat", "exit code 1"),
        ("exit 3", "exit code 3"),
        ("true", "nothing was printed"),
        ("""echo '{"error": {"message": "no such model"}}'""", "no such model"),
    ],
)
def test_a_program_that_fails_or_is_refused_fails_its_test(tmp_path, program, said):
    (example,) = examples(f"<!-- run: x -->\n{FENCE}bash\n{program}\n{FENCE}\n").values()
    with pytest.raises(AssertionError, match=re.escape(said)):
        example.run("http://127.0.0.1:9", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        f"<!-- run: a -->\n\n{FENCE}bash\necho\n{FENCE}\n",
        f"<!-- run: a -->\n{FENCE}\necho\n{FENCE}\n",
        f"<!-- run: a-->\n{FENCE}bash\necho\n{FENCE}\n",
        f"<!-- run: a -->\n{FENCE}bash\necho\n",
        2 * f"<!-- run: a -->\n{FENCE}bash\necho\n{FENCE}\n",
    ],
)
def test_a_mark_that_would_run_nothing_is_refused(text):
    with pytest.raises(ValueError, match="<!-- run: a"):
        examples(text)


def test_the_readme_has_every_example():
    found = examples((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(found) == sorted(NAMES)
    asked = {name for name, each in found.items() if each.at("http://x:1") != each.text}
    assert asked >= {"openai", "httpx", "curl", "cohere"}
