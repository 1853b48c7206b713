"""The shipped recipes say what the papers publish: every number of the tables is checked here, not only that they load."""

from pathlib import Path

import pytest

from fusion.losses import DpoLoss, LnDpoLoss, RlooLoss, SimpoLoss, WrpoIpoLoss, WrpoLoss, WrpoSimpoLoss
from fusion.pipeline import build
from fusion.recipe import Recipe, load_recipe
from fusion.rewards import ArmoRM, Unscored, Verified
from fusion.select import ByDomain
from jobs.sweep import expand

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
FUSECHAT = RECIPES / "fusechat3-llama31-8b.yaml"
TARGETS = sorted((RECIPES / "targets").glob("*.yaml"))
VARIANTS = {
    "wrpo-alpha": "wrpo-llama3-8b",
    "wrpo-rows": "wrpo-llama3-8b",
    "wrpo-sources": "wrpo-llama3-8b",
    "fuserl-rloo": "fuserl-llama31-8b",
    "fuserl-temperature": "fuserl-llama31-8b",
}

# target -> SFT learning rate, DPO learning rate, beta, length normalisation (FuseChat-3.0 README, hyper-parameters)
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": (5e-6, 8e-7, 10.0, True),
    "Qwen/Qwen2.5-7B-Instruct": (2e-6, 3e-7, 0.01, False),
    "google/gemma-2-9b-it": (2e-6, 5e-7, 0.01, False),
    "meta-llama/Llama-3.2-3B-Instruct": (5e-6, 1e-6, 10.0, True),
    "meta-llama/Llama-3.2-1B-Instruct": (5e-6, 1e-6, 10.0, True),
}


def fusechat(*overlays: Path) -> Recipe:
    return load_recipe([FUSECHAT, *overlays])


def test_all_five_targets_have_their_published_settings():
    found = {}
    for recipe in (fusechat(), *(fusechat(overlay) for overlay in TARGETS)):
        arm = recipe.arms["fusechat3"]
        assert isinstance(arm.loss, DpoLoss | LnDpoLoss)
        found[recipe.target.repo] = (
            recipe.sft.learning_rate,
            arm.learning_rate,
            arm.loss.beta,
            isinstance(arm.loss, LnDpoLoss),
        )
        assert (recipe.sft.epochs, arm.epochs) == (3, 1)
        assert {(b.global_batch, b.max_length, b.schedule, b.warmup_ratio) for b in (recipe.sft, arm)} == {
            (128, 2048, "cosine", 0.1)
        }
        held_out = arm.held_out
        assert held_out and (held_out.every, held_out.keep, held_out.among) == (100, "best", 2)
    assert found == PUBLISHED


def test_names_of_recipes_are_those_of_their_files():
    assert [fusechat(overlay).name for overlay in TARGETS] == [overlay.stem for overlay in TARGETS]
    assert len({stage.key for stage in build(fusechat()).stages}) == len(build(fusechat()).stages)


def test_fusechats_sources_sample_as_published():
    recipe = fusechat()
    sampled = {
        name: (s.sampling.temperature, s.sampling.top_p, s.sampling.repetition_penalty)
        for name, s in recipe.source_models.items()
    }
    assert sampled == {
        "gemma-2-27b-it": (0.8, 0.95, 1.0),
        "mistral-large-2407": (0.8, 0.95, 1.0),
        "qwen2_5-72b-instruct": (0.7, 0.8, 1.05),
        "llama-3_1-70b-instruct": (0.8, 0.95, 1.0),
        "qwen2_5-math-72b-instruct": (0.7, 0.8, 1.05),
    }
    asked: dict[str, dict[str, int]] = {}
    for stage in build(recipe).stages:
        if stage.kind == "generate" and stage.config.domains and not stage.slug.startswith("held_out"):
            for domain in stage.config.domains:
                asked.setdefault(domain, {})[stage.config.name] = stage.config.num_samples
    four = ("gemma-2-27b-it", "mistral-large-2407", "qwen2_5-72b-instruct", "llama-3_1-70b-instruct")
    assert asked == {
        "instruction": dict.fromkeys(four, 5),
        "code": dict.fromkeys(four, 8),
        "chinese": {"qwen2_5-72b-instruct": 1},
        "math": {"qwen2_5-math-72b-instruct": 8},
    }
    assert set(recipe.sources) - set(recipe.source_models) == {"llama-3_1-405b-instruct"}


def test_fusechats_domains_are_judged_and_selected_as_published():
    recipe = fusechat()
    kinds = {domain: type(scorer) for domain, scorer in recipe.score.items()}
    assert kinds == {"instruction": ArmoRM, "math": Verified, "code": Verified, "chinese": Unscored}
    assert {d: s.verifier.type for d, s in recipe.score.items() if isinstance(s, Verified)} == {
        "math": "math",
        "code": "code",
    }
    rule = recipe.arms["fusechat3"].select
    assert isinstance(rule, ByDomain)
    windows = {d: (r.contrast, r.min_margin, r.max_margin) for d, r in rule.rules.items()}  # type: ignore[union-attr]
    assert windows == {
        "instruction": ("score", 0.01, 0.1),
        "math": ("verdict", 0.01, 0.1),
        "code": ("verdict", 0.0, None),
    }
    sets = [(s.name, s.domain) for s in recipe.prompts]
    assert [domain for _, domain in sets].count("instruction") == 3 and len(sets) == 8


def test_wrpos_objectives_have_the_settings_of_tables_5_and_6():
    arms = load_recipe([RECIPES / "wrpo-llama3-8b.yaml"]).arms
    wrpo, ipo, simpo = (arms[name].loss for name in ("wrpo", "wrpo_ipo", "wrpo_simpo"))
    assert isinstance(wrpo, WrpoLoss) and isinstance(ipo, WrpoIpoLoss) and isinstance(simpo, WrpoSimpoLoss)
    assert (wrpo.beta, wrpo.alpha.value_at(310, 311)) == (0.01, 0.1)
    assert (ipo.tau, ipo.alpha.value_at(310, 311)) == (0.01, 0.1)
    assert (simpo.beta, simpo.gamma, simpo.alpha.value_at(310, 311)) == (10.0, 0.0, 0.5)
    rates = [arms[name].learning_rate for name in ("wrpo", "dpo_on_policy", "wrpo_ipo", "wrpo_simpo")]
    assert rates == [3e-7, 3e-7, 1e-6, 6e-7]


def test_fuserl_weighs_both_stages_and_has_its_three_objectives():
    recipe = load_recipe([RECIPES / "fuserl-llama31-8b.yaml"])
    assert recipe.sft.select.type == "weighted_responses" and len(recipe.sources) == 4
    assert {name: type(arm.loss) for name, arm in recipe.arms.items()} == {
        "fuserl_dpo": DpoLoss, "fuserl_simpo": SimpoLoss, "fuserl_rloo": RlooLoss,
    }  # fmt: skip
    assert [arm.select.type for arm in recipe.arms.values()] == ["weighted_pairs", "weighted_pairs", "weighted_groups"]
    assert len({getattr(b.select, "temperature", None) for b in (recipe.sft, *recipe.arms.values())}) == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variants_file_fits_its_recipe(name):
    found = expand([RECIPES / f"{VARIANTS[name]}.yaml"], [], [RECIPES / "variants" / f"{name}.yaml"], [])
    assert len(found) >= 4 and {path.stem for path in (RECIPES / "variants").glob("*.yaml")} == set(VARIANTS)


@pytest.mark.parametrize("name", ["wrpo-llama3-8b", "fusechat3-llama31-8b", "fuserl-llama31-8b"])
def test_reward_models_read_the_longest_answer_with_its_prompt(name):
    """A pair that is too long is quarantined before any selection, so long answers would go first."""
    recipe = load_recipe([RECIPES / f"{name}.yaml"])
    models = [s.reward if isinstance(s, Verified) else s for s in recipe.scorers]
    lengths = {model.max_length for model in models if isinstance(model, ArmoRM)}
    assert lengths == {8192} and recipe.sampling.max_tokens < 8192
