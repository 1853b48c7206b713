"""How models are compared on held-out prompts: statistics only; grading is done by the score stage."""

from fusion.evaluation.bootstrap import Interval, mean_interval, paired_difference, shared_prompts

__all__ = ["Interval", "mean_interval", "paired_difference", "shared_prompts"]
