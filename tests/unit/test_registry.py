"""Tables: rows by name, plug-ins through entry points, and what is said where a row cannot be had."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import metadata

import pytest

from mmzoo import registry
from mmzoo.errors import ConfigError
from mmzoo.heads.classifier import LinearHead
from mmzoo.registry import Row


@pytest.fixture
def fresh_tables():
    registry.table.cache_clear()
    registry._plugins.cache_clear()
    yield
    registry.table.cache_clear()
    registry._plugins.cache_clear()


def test_a_row_is_found_and_named():
    assert registry.find("heads", "linear") is LinearHead
    assert registry.name_of("heads", LinearHead) == "linear"


def test_unknown_and_unregistered_are_said():
    with pytest.raises(ConfigError, match=r"heads: 'liner' is unknown; expected a row .* mean 'linear'\?"):
        registry.find("heads", "liner")
    with pytest.raises(ConfigError, match=r"tasks\.a\.head\.type: 'x' is unknown"):
        registry.find("heads", "x", "tasks.a.head.type")
    with pytest.raises(ConfigError, match="builtins:int has no row; expected a registered class"):
        registry.name_of("heads", int)


def test_a_row_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.table("heads"), "far", Row("no_such_package.heads:Far", "far"))
    with pytest.raises(ConfigError, match=r"'far' cannot be imported; .*No module named 'no_such_package'"):
        registry.find("heads", "far")


@pytest.mark.usefixtures("fresh_tables")
def test_other_packages_add_rows_but_replace_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    given = metadata.EntryPoints(
        [
            metadata.EntryPoint("mine", "mmzoo.heads.classifier:MlpHead", "mmzoo.heads"),
            metadata.EntryPoint("linear", "elsewhere:Linear", "mmzoo.heads"),
            metadata.EntryPoint("other", "elsewhere:Other", "console_scripts"),
        ]
    )
    monkeypatch.setattr(metadata, "entry_points", lambda: given)
    with caplog.at_level(logging.WARNING):
        rows = registry.table("heads")
    assert rows["mine"] == Row("mmzoo.heads.classifier:MlpHead", "plug-in (mmzoo.heads.classifier:MlpHead)")
    assert rows["linear"].target == "mmzoo.heads.classifier:LinearHead"
    assert "heads/linear from elsewhere:Linear hides nothing" in caplog.text
    assert registry.find("heads", "mine").__name__ == "MlpHead"
    assert "mine" not in registry.table("objectives")


def test_listing_a_table_imports_no_row():
    code = (
        "import sys; from mmzoo import registry; registry.table('datamodules'); "
        "sys.exit('mmzoo.datamodules.folder' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
