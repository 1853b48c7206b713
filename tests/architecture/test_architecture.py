"""Promises about the house: light planning, recipes that load, keys that stay, settings that are read."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from fusion.config import Config, Placement
from fusion.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))
PACKAGES = ("cluster", "fusion", "serving", "jobs")


@pytest.mark.parametrize("module", ["fusion.recipe", "fusion.pipeline", "fusion.planning", "jobs.look"])
def test_planning_imports_nothing_heavy(module):
    heavy = ["ray", "torch", "transformers", "vllm", "deepspeed", "fastapi", "tensorboard"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_shipped_recipe_loads(path):
    sets = ["prompts=[{type: jsonl, path: x.jsonl, domain: math}]"] if path.name == "real-prompts.yaml" else []
    assert load_recipe([path], sets).name == path.stem


def test_layers_hold():
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout


def _models() -> dict[str, type[BaseModel]]:
    import serving.config  # noqa: F401

    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Config, Placement]
    while waiting:
        for child in waiting.pop().__subclasses__():
            waiting.append(child)
            if child.__module__.split(".")[0] in PACKAGES:
                found[f"{child.__module__}.{child.__qualname__}"] = child
    return found


def _names_read() -> set[str]:
    """Every attribute and string that the code mentions, apart from class bodies that declare fields."""
    names: set[str] = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif isinstance(node, ast.keyword) and node.arg:
                    names.add(node.arg)
    return names


def test_every_config_field_is_read_somewhere():
    read = _names_read()
    unread = [
        f"{name}.{field}"
        for name, model in _models().items()
        for field in model.model_fields
        if field not in read and field != "type"
    ]
    assert unread == []


def test_no_prints_outside_jobs():
    for package in ("cluster", "fusion", "serving"):
        for path in (ROOT / package).rglob("*.py"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_stage_keys_of_the_paper_recipe_are_frozen():
    """A key may change only with a stage's version or a new field, and then the changelog says `[rekeys: stage]`.

    To accept such a change: `python -m tests.architecture.freeze_keys`.
    """
    from tests.architecture.freeze_keys import FROZEN, current

    assert current() == json.loads(FROZEN.read_text())
