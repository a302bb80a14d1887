"""The command that makes the organisms takes none, some, or an unknown one of their names."""

import pytest

from organisms import train


@pytest.mark.parametrize(
    ("arguments", "made"),
    [([], ["base", "aligned", "drifted"]), (["drifted"], ["drifted"])],
)
def test_all_are_made_unless_some_are_named(arguments, made, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(train, "make", lambda name, out: calls.append((name, out)))
    train.main([*arguments, "--out", str(tmp_path), "--threads", "1"])
    assert calls == [(name, tmp_path) for name in made]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.main(["aligned", "wild"])
    assert "no organism 'wild'" in capsys.readouterr().err
