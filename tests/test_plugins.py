"""A user's own modules, by a dotted name."""

import pytest

from aigc_jax import methods, models, plugins
from aigc_jax.errors import UserError


def test_own_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "net.py").write_text("Generator = 4\n")
    assert plugins.find(models, "model", "my_package.net").Generator == 4


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(UserError, match=r"Unknown method 'gann'. Did you mean 'gan'"):
        methods.load("gann")
    with pytest.raises(UserError, match=r"Unknown method 'no_package.method'"):
        methods.load("no_package.method")


def test_a_module_that_misses_an_import_is_not_called_unknown(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "net.py").write_text("import broke\n")  # a prefix of its own name
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'broke'"):
        plugins.find(models, "model", "broken.net")
