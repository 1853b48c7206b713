"""The README's examples that are run: fenced blocks directly below a line `<!-- run: NAME -->`.

Each is a whole program against http://127.0.0.1:8000, where models `wrpo` and `reward` are served.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = ("openai", "httpx", "curl", "cohere", "keys", "score")
"""The examples that the README must have."""

_MARK = re.compile(r"^<!-- run: .*$", re.MULTILINE)
_EXAMPLE = re.compile(r"<!-- run: ([a-z]+) -->\n```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ADDRESS = re.compile(r"\b(?:127\.0\.0\.1|localhost):8000\b")
_SCORE = re.compile(r"\bscore\s+(\S+)\s(?:.|\n)*?--model\s+(\S+)")


@dataclass(frozen=True, slots=True)
class Example:
    """One program of the README."""

    language: str
    text: str

    def score_files(self) -> tuple[Path, Path]:
        """Return the file of rows and the model folder that `fuseline score` is given."""
        found = _SCORE.search(self.text)
        assert found, f"no `score ROWS ... --model FOLDER` in:\n{self.text}"
        return Path(found[1]), Path(found[2])

    def at(self, url: str) -> str:
        """Return the program, asking the service at `url`."""
        return _ADDRESS.sub(url.removeprefix("http://"), self.text)

    def run(self, url: str, folder: Path) -> str:
        """Run it in `folder` and return what it printed; fails where the program does or an answer is an error."""
        file = folder / f"example.{self.language}"
        file.write_text(self.at(url), encoding="utf-8")
        # A pipe whose first program fails, or a failed line that is not the last, counts too.
        program = [sys.executable] if self.language == "python" else ["bash", "-e", "-o", "pipefail"]
        scripts = Path(sys.executable).parent
        done = subprocess.run(
            [*program, file.name],
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_AUTH_MODE": "disabled",
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), f"nothing was printed by:\n{self.text}"
        assert not re.search(r'"error":\s*\{', done.stdout), done.stdout  # curl ends with 0 for a refusal
        return done.stdout


def examples(text: str) -> dict[str, Example]:
    """Return the examples of a Markdown text by name.

    Raises:
        ValueError: a mark that is not followed by a python or bash block, or a name that occurs twice.
    """
    found: dict[str, Example] = {}
    for mark in _MARK.finditer(text):
        example = _EXAMPLE.match(text, mark.start())
        if example is None:
            raise ValueError(f"{mark[0]}: write it as `<!-- run: NAME -->`, directly above a python or bash block")
        if example[1] in found:
            raise ValueError(f"{mark[0]}: the name occurs twice")
        found[example[1]] = Example(example[2], example[3])
    return found
