"""Gives every process that has this folder on its path one more experiment, which costs nothing."""

from experiments.registry import EXPERIMENTS, Experiment

EXPERIMENTS["made"] = Experiment(
    "made", "Does as it is told.", "made_experiment:MadeSettings", "made_experiment:run_made"
)
