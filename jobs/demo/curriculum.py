"""What each of the two worlds asks: its skills, their domains, and the names of its models.

Names only, so that verifying a finished world loads no model code (`jobs.demo.models` has the shapes). The one idea:
both worlds are made by the same code from one `Curriculum`; the first has one skill per domain and one judge, the
second is for the methods that take their answers from several domains, each with its own verifier.
"""

import dataclasses

from jobs.demo.language import Skill
from jobs.demo.settings import WorldSettings


@dataclasses.dataclass(frozen=True, slots=True)
class Curriculum:
    """What a world is about."""

    turns: tuple[Skill, ...]
    """Skills in the order in which prompts take them; a skill that stands twice is asked and taught twice as often."""
    domains: dict[Skill, str]
    """Domain of the prompts of each skill."""
    models: tuple[str, ...]
    """Folder names under `models/`, the longest to train first."""


SKILLS = Curriculum(
    turns=(Skill.add, Skill.sort, Skill.translate, Skill.reverse),
    domains={skill: skill for skill in (Skill.add, Skill.sort, Skill.translate, Skill.reverse)},
    models=("gemma2-translate", "target", "llama-add", "qwen2-sort", "mistral-reverse", "reward"),
)
"""The first demo: every skill is a domain, and `jobs.demo.verifier` judges them all."""

DOMAINS = Curriculum(
    turns=(Skill.sort, Skill.add, Skill.code, Skill.translate, Skill.take, Skill.code, Skill.reverse),
    domains={
        Skill.sort: "instruction",
        Skill.translate: "instruction",
        Skill.reverse: "instruction",
        Skill.add: "math",
        Skill.take: "math",
        Skill.code: "code",
    },
    models=("target", "gemma2-translate", "mistral-order", "llama-math", "qwen2-code", "reward"),
)
"""The demos of FuseChat-3.0 and FuseRL: the math and the code verifier judge two of the three domains."""


def curriculum_of(settings: WorldSettings) -> Curriculum:
    """Return what the world of `settings` asks."""
    return DOMAINS if settings.domains else SKILLS
