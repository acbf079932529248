"""One task of a routed run by the real command: fewer experts, the same figures."""

from __future__ import annotations

import json
import re

import pytest

from mmzoo import zoo

from .conftest import Command

ROUTED = [
    "model=indoor_multi_head_tiny", "data.num_train=8", "data.num_val=4", "data.num_test=4",
    "data.size=[32,32]", "data.loader.batch_size=4", "model.modalities.image.preprocess.size=[32,32]",
    "model.trunk.dim=16", "model.trunk.num_heads=2", "model.decoder.width=8", "trainer.max_steps=2",
    "trainer.val_every_steps=2", "trainer.threads=1", "run_dir=run", "model.trunk.ffn.type=moe",
    "model.trunk.ffn.router=task_topk", "model.trunk.ffn.router.top_k=1",
    "model.trunk.ffn.router.weights=straight_through", "model.trunk.ffn.num_experts=12",
    "model.trunk.ffn.hidden_dim=8",
]  # fmt: skip


def test_one_task_is_cut_out_and_measures_the_same(mmzoo: Command):
    mmzoo("train", "indoor", *ROUTED)
    said = mmzoo("convert", "run", "one", "--extract-task", "depth").stdout
    kept = re.findall(r"block \d: (\d+) of 12 experts \(.*\), 100.0 % of its choices", said)
    assert len(kept) == 4
    assert len(set(kept)) == 1
    assert 1 <= int(kept[0]) < 12
    whole, part = (
        json.loads(mmzoo("eval", name, "--split", "val", "--json").stdout)["metrics"]
        for name in ("run", "one")
    )
    assert part["depth/rmse_m"] == pytest.approx(whole["depth/rmse_m"], rel=1e-5)
    assert not any(name.startswith("semseg/") for name in part)
    before, after = zoo.load(mmzoo.folder / "run"), zoo.load(mmzoo.folder / "one")
    assert list(after.config.heads) == ["depth"]
    assert after.num_params()["trunk"] < before.num_params()["trunk"]
    err = mmzoo("convert", "run", "two", "--extract-task", "dept", code=2).stderr
    assert "no head 'dept'" in err
    err = mmzoo("convert", "run", "two", "--extract-task", "depth", "--min-share", "2", code=2).stderr
    assert "--min-share: 2.0; expected 0 to 1" in err
    assert "something is there" in mmzoo("convert", "run", "one", "--extract-task", "depth", code=2).stderr
