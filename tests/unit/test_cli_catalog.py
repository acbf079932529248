"""`mmzoo list` and `mmzoo info`: what they find in tables, YAML files and source, and the real classes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mmzoo import registry
from mmzoo.cli import catalog, figures, info, main, options
from mmzoo.cli.options import Option


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    assert main.main(["list", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a model, a data config and two recipes, one based on the other."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "model/ears": "# Hears.\n# licence: MIT\nmodalities: {audio: {type: mel}, text: {type: text}}\n",
        "data/noise": "# Noise.\ntype: folder\nroot: here\n",
        "recipe/base_ears": "# Learns to hear.\nbase: [model/ears, data/noise]\nname: ears\n"
        "tasks: {match: {objective: infonce, head: {type: contrastive}, metrics: [{type: retrieval}]}}\n",
        "recipe/ears_labels": "# Learns names, too.\nbase: recipe/base_ears\n"
        "tasks: {name: {objective: {type: cross_entropy}, target: label, head: linear}}\n",
    }.items():
        file = tmp_path / "configs" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    catalog.load.cache_clear()
    return tmp_path


@pytest.mark.parametrize("table", registry.ROOMS)
def test_every_row_of_every_table_is_listed(table: str, capsys: pytest.CaptureFixture[str]):
    found = {entry["name"]: entry for entry in listed(capsys, "--kind", table)}
    assert set(found) == set(registry.table(table))
    assert all(found[name]["summary"] == row.summary for name, row in registry.table(table).items())


@pytest.mark.parametrize("group", catalog.GROUP_KINDS)
def test_every_shipped_config_is_listed_with_a_summary(group: str, capsys: pytest.CaptureFixture[str]):
    found = listed(capsys, "--kind", group)
    shipped = sorted(p.stem for p in (catalog.configs.PACKAGE / group).glob("*.yaml"))
    assert [entry["name"] for entry in found] == shipped
    assert all(len(entry["summary"]) > 10 for entry in found)


def test_recipes_know_their_model_tasks_and_modalities_through_their_bases(
    own_configs: Path, capsys: pytest.CaptureFixture[str]
):
    found = {entry["name"]: entry for entry in listed(capsys, "ears", "--kind", "recipe")}
    assert found["base_ears"]["tasks"] == ["retrieval"]
    assert found["ears_labels"]["tasks"] == ["classification", "retrieval"]
    assert found["ears_labels"]["task_names"] == ["match", "name"]
    assert found["ears_labels"]["model"] == "ears"
    assert found["ears_labels"]["modalities"] == ["audio", "text"]
    assert found["ears_labels"]["data"] == "folder"
    assert found["ears_labels"]["summary"] == "Learns names, too."


def test_facts_in_a_models_header_are_read(own_configs: Path, capsys: pytest.CaptureFixture[str]):
    (entry,) = listed(capsys, "ears", "--kind", "models")
    assert (entry["summary"], entry["licence"]) == ("Hears.", "MIT")


def test_filters_by_modality_task_and_pattern(own_configs: Path, capsys: pytest.CaptureFixture[str]):
    names = {e["name"] for e in listed(capsys, "--modality", "audio", "--kind", "recipes")}
    assert {"base_ears", "ears_labels", "five_senses"} <= names
    assert "cifar10" not in names
    names = {e["name"] for e in listed(capsys, "--task", "classification")}
    assert "ears_labels" in names
    assert not {"base_ears", "five_senses"} & names
    assert [e["name"] for e in listed(capsys, "b?se_*", "--kind", "recipes")] == ["base_ears"]


def test_models_sort_by_parameters_with_the_unknown_last(
    own_configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    counts = {"ears": {"params": {"total": 5}}, "image_conv_tiny": {"params": {"total": 3}}}
    monkeypatch.setattr(catalog, "figures", lambda: counts)
    names = [e["name"] for e in listed(capsys, "--kind", "models", "--sort", "params")]
    assert names[:2] == ["image_conv_tiny", "ears"]
    assert {e["name"]: e.get("size_mb") for e in listed(capsys, "ears", "--kind", "models")} == {"ears": 0.0}


@pytest.mark.parametrize("name", figures.shipped())
def test_the_committed_figures_are_those_of_the_presets(name: str):
    """A preset has changed? `python -m mmzoo.cli.figures` writes the file anew."""
    assert catalog.figures()[name] == figures.count(name)


def test_no_figures_are_left_of_presets_that_are_gone():
    assert sorted(catalog.figures()) == figures.shipped()


def test_a_broken_yaml_does_not_break_the_list(own_configs: Path, capsys: pytest.CaptureFixture[str]):
    (own_configs / "configs" / "recipe" / "broken.yaml").write_text("# Broken.\nbase: [model/ears\n")
    (entry,) = listed(capsys, "broken")
    assert entry["summary"] == "Broken."


def test_the_table_for_people_has_a_section_a_kind(capsys: pytest.CaptureFixture[str]):
    assert main.main(["list"]) == 0
    text = capsys.readouterr().out
    for title in ("recipes", "models", "data configs", "modalities", "heads", "token mixers", "metrics"):
        assert f"\n{title}\n" in f"\n{text}"


def test_a_component_is_explained_option_by_option(capsys: pytest.CaptureFixture[str]):
    assert main.main(["info", "metrics/retrieval", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["options"][0] == {
        "name": "ks",
        "type": "list[int]",
        "default": "[1, 5, 10]",
        "doc": "the k of R@k",
        "choices": [],
    }


def test_enums_show_their_choices_and_the_default_by_value():
    found = options.describe("mmzoo.modalities.text:TextPreprocess")
    assert found is not None
    clean = {o.name: o for o in found.options}["clean"]
    assert (clean.default, clean.choices) == ("none", ("none", "caption"))
    tokenizer = {o.name: o for o in found.options}["tokenizer"]
    assert (tokenizer.type, tokenizer.default) == ("one of tokenizers", "clip_bpe")


def test_capability_flags_of_a_mixer_are_shown_with_the_inherited_ones():
    found = options.describe("mmzoo.trunk.attention:MultiHeadAttention")
    assert found is not None
    assert found.flags["needs_grid"] == "False"
    assert found.flags["supports_bias"] == "True"


ROWS = [(table, name) for table in registry.ROOMS for name in registry.table(table)]


@pytest.mark.parametrize(("table", "name"), ROWS, ids=["/".join(row) for row in ROWS])
def test_what_the_source_says_is_what_the_class_has(table: str, name: str):
    """Every field of the imported Config, in order, with the type of default that parsing found."""
    cls = registry.find(table, name)
    found = options.describe(registry.table(table)[name].target)
    assert found is not None
    fields = dataclasses.fields(cls.Config)
    assert sorted(o.name for o in found.options) == sorted(f.name for f in fields)
    by_name: dict[str, Option] = {o.name: o for o in found.options}
    for field in fields:
        option = by_name[field.name]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert (option.default == "required") == required, option
        assert option.doc, f"{table}/{name}.{field.name} has no line under it"


def test_info_of_a_recipe_says_what_it_trains_on_what(own_configs: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(["info", "ears_labels"]) == 0
    text = capsys.readouterr().out
    assert "recipe/base_ears" in text
    assert [line.split() for line in text.splitlines() if line.startswith(("match", "name"))] == [
        ["match", "retrieval", "infonce", "contrastive", "all", "–", "retrieval"],
        ["name", "classification", "cross_entropy", "linear", "all", "label"],
    ]


def test_info_of_a_shared_name_takes_the_recipe_and_names_the_others(capsys: pytest.CaptureFixture[str]):
    assert main.main(["info", "five_senses"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("recipes/five_senses")
    assert "also: data/five_senses, datamodules/five_senses" in err
    assert [e.kind for e in info.lookup("datamodule/five_senses")] == ["datamodules"]


def test_info_of_a_data_config_shows_its_options(own_configs: Path, capsys: pytest.CaptureFixture[str]):
    assert main.main(["info", "data/noise"]) == 0
    assert "type: folder\nroot: here" in capsys.readouterr().out


def test_a_routed_preset_says_what_one_task_meets(capsys: pytest.CaptureFixture[str]):
    """Of 16 experts a token of one task passes 2, in 6 blocks; the other task's gates are not its own."""
    counted = catalog.figures()["edge_moe_tiny"]
    expert, gate = 2 * 192 * 384 + 384 + 192, 16 * 192
    active = counted["params"]["trunk"] - 6 * (14 * expert + gate)
    assert counted["active"] == active
    assert main.main(["info", "edge_moe_tiny"]) == 0
    assert f"a token meets {active:,} of the trunk's parameters" in capsys.readouterr().out
