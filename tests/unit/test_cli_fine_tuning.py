"""What the plan and the log say of fine-tuning: all that is on, nothing that is off."""

from __future__ import annotations

import pathlib

from mmzoo import recipe, zoo
from mmzoo.cli import fine_tuning
from mmzoo.models.finetune.lora import is_factor

TWO = ["~model.modalities.audio", "~model.modalities.skeleton", "~model.modalities.image"]


def test_a_plain_run_has_nothing_to_say(small: list[str]):
    built = recipe.build(recipe.load("five_senses", [*small, *TWO]))
    assert fine_tuning.facts(built) == {}
    assert fine_tuning.lines(built) == {}


def test_everything_that_is_on_is_told(small: list[str], tmp_path: pathlib.Path):
    start = recipe.build(recipe.load("five_senses", [*small, *TWO]))
    zoo.export(start.model, tmp_path, start.learner.meta)
    options = [
        f"init_from={tmp_path}",
        "+model.modalities.note={type: text, preprocess: {tokenizer: bytes}, ffn: copy(text)}",
        "tasks.align.passes=[text,fmri]",
        "model.freeze=[~modalities.text]",
        "model.lora.rank=2",
        "learner.optim.layer_decay=0.5",
        "learner.optim.lr=0.08",
        "learner.unfreeze.every=3",
        "trainer.ema.decay=0.9",
    ]
    built = recipe.build(recipe.load("five_senses", [*small, *TWO, *options]))
    facts = fine_tuning.facts(built)
    assert facts["init_from"] == str(tmp_path)
    assert facts["ffn_from"] == {"note": "text"}
    assert facts["ema"] == {"decay": 0.9, "start_step": 0}
    factors = sum(p.numel() for n, p in built.model.named_parameters() if is_factor(n))
    assert facts["lora"]["parameters"] == factors == 2 * (2 * 16 + 2 * 48 + 2 * 16 + 2 * 16)
    assert {"modalities.fmri", "modalities.note"} <= set(facts["frozen"])
    assert "modalities.text" not in facts["frozen"]
    assert [(r["part"], round(r["lr"], 6)) for r in facts["learning_rates"]] == [
        ("modalities.text", 0.01),
        ("trunk.blocks.0.mixer (4 of 11 tensors)", 0.02),
        ("trunk.blocks.1.mixer (4 of 11 tensors)", 0.04),
        ("heads", 0.08),
    ]
    stages = [(s["at"], s["unit"]) for s in facts["unfreeze"]]
    assert stages == [(3, "steps"), (6, "steps"), (9, "steps")]
    assert facts["unfreeze"][2]["parts"] == ["modalities.text"]
    lines = fine_tuning.lines(built)
    assert lines["starts from"] == str(tmp_path)
    assert lines["starts anew"].startswith("modalities.note")
    assert lines["FFN copied"] == "note from text"
    assert lines["LoRA"] == f"rank 2, scale 1, {factors} parameters on 4 linear maps (qkv, out)"
    assert lines["rates by part"].startswith("modalities.text 1.00e-02, trunk.blocks.0.mixer (4 of 11")
    assert lines["unfreezing"].endswith("step 9 modalities.text")
    assert lines["EMA"] == "decay 0.9, start_step 0"
    assert set(lines) == {
        "starts from", "starts anew", "FFN copied", "frozen", "LoRA", "rates by part", "unfreezing", "EMA",
    }  # fmt: skip
