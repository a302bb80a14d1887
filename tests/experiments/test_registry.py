"""Every experiment can be found by name, told by settings and run by one function."""

import pytest

from experiments.registry import EXPERIMENTS, find
from experiments.settings import ConfigError, Settings


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_settings_that_survive_toml(name, tmp_path):
    experiment = find(name)
    assert issubclass(experiment.settings, Settings)
    settings = experiment.settings(seed=3)
    settings.write(tmp_path / "config.toml")
    assert experiment.settings.read(tmp_path / "config.toml") == settings
    assert experiment.about.endswith(".")


def test_an_unknown_experiment_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="no experiment 'compar'; did you mean compare"):
        find("compar")
    with pytest.raises(ConfigError, match="known: compare"):
        find("zzz")
