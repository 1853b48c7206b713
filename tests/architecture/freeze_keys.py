"""Write the stage keys of the paper recipe to keys.json; run it only when a change of keys is meant."""

import json
from pathlib import Path

from fusion.pipeline import build
from fusion.recipe import load_recipe

FROZEN = Path(__file__).parent / "keys.json"
RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "wrpo-llama3-8b.yaml"


def current() -> dict[str, str]:
    """Stage label -> key, as the code makes them now."""
    return {stage.label: stage.key for stage in build(load_recipe([RECIPE])).stages}


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(current(), indent=1) + "\n")
