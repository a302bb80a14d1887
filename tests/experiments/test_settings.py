"""Settings: what is said wins over what is written, and nothing unknown is taken."""

import pytest

from experiments import CompareSettings, ConfigError


def test_later_sources_win_over_earlier_ones(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('model = "a"\nseed = 1\nk = 2\n')
    settings = CompareSettings.read(file, options={"seed": 2, "model": None}, assignments=["k=3"])
    assert (settings.model, settings.seed, settings.k) == ("a", 2, 3)


def test_written_settings_read_back_the_same(tmp_path):
    settings = CompareSettings(model="x", layers=[1, 2], k=3)
    settings.write(tmp_path / "config.toml")
    assert CompareSettings.read(tmp_path / "config.toml") == settings


def test_where_the_store_lies_does_not_change_the_digest():
    assert CompareSettings(store="a").digest() == CompareSettings(store="b").digest()
    assert CompareSettings(seed=1).digest() != CompareSettings(seed=2).digest()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("kk=3", "no setting 'kk'"),
        ("k=0", "greater than or equal to 1"),
        ("k=many", "valid integer"),
        ("tokens=first", "'last' or 'mean'"),
        ("novalue", "key=value"),
    ],
)
def test_a_bad_setting_is_one_sentence(assignment, message):
    with pytest.raises(ConfigError, match=message):
        CompareSettings.read(assignments=[assignment])


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no settings file"):
        CompareSettings.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("model = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        CompareSettings.read(tmp_path / "bad.toml")
