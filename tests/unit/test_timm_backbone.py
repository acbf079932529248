"""The timm adapter against timm itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo.batch import ModalityInput
from mmzoo.errors import CheckpointError, ConfigError, ShapeError
from mmzoo.modalities import timm_zoo
from mmzoo.modalities.image_preprocess import Resize
from mmzoo.modalities.mixed_sizes import fake_images
from mmzoo.modalities.timm_backbone import Output, TimmAdapter, TimmPreprocess

CONV, VIT, SWIN = "resnet10t", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"
SMALL_VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
SMALL_SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
}
CASES = {
    "conv": (CONV, {}, (64, 96)),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, (64, 32)),
    "mobilenet": ("mobilenetv3_small_050", {}, (64, 64)),
    "vit": (VIT, SMALL_VIT, (32, 32)),
    "siglip": ("vit_base_patch16_siglip_224", SMALL_VIT, (32, 32)),
    "swin": (SWIN, SMALL_SWIN, (64, 64)),
}


def adapter_of(model: str = CONV, size: tuple[int, int] = (64, 64), **options) -> TimmAdapter:
    config = TimmAdapter.Config(model=model, preprocess=TimmPreprocess.Config(size=size), **options)
    torch.manual_seed(0)
    return TimmAdapter(config, name="image", dim=12, num_heads=2).eval()


def projected(adapter: TimmAdapter, features: torch.Tensor) -> torch.Tensor:
    tokens = features @ adapter.proj.weight.t() + adapter.proj.bias
    return torch.cat([adapter.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("out", list(Output))
def test_tokens_are_timms_features_projected(generator, case, out):
    model, create, size = CASES[case]
    adapter = adapter_of(model, size, out=out, create=create)
    x = fake_images(3, [size] * 2, generator)
    found = adapter(x)
    backbone = adapter.backbone
    if out is Output.POOLED:
        features, own, grid = backbone(x.values)[:, None], 0, (1, 1)
    else:
        features, own = backbone.forward_features(x.values), getattr(backbone, "num_prefix_tokens", 0)
        if case == "swin":
            grid = tuple(features.shape[1:3])
            features = features.flatten(1, 2)
        elif features.ndim == 4:
            grid = tuple(features.shape[2:])
            features = features.flatten(2).transpose(1, 2)
        else:
            grid = backbone.patch_embed.grid_size
        if out is Output.FEATURE_MAP:
            features, own = features[:, own:], 0
    torch.testing.assert_close(found.tokens, projected(adapter, features), atol=1e-5, rtol=1e-5)
    assert found.grids == (grid, grid)
    assert found.num_prefix == 1 + own
    assert found.tokens.shape[1] == found.num_prefix + grid[0] * grid[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("out", list(Output))
def test_every_parameter_gets_a_gradient(generator, case, out):
    model, create, size = CASES[case]
    adapter = adapter_of(model, size, out=out, create=create).train()
    adapter(fake_images(3, [size] * 4, generator)).tokens.square().sum().backward()
    assert [name for name, p in adapter.named_parameters() if p.grad is None] == []


def test_each_image_of_a_mixed_batch_is_as_alone(generator):
    adapter = adapter_of()
    sizes = [(64, 64), (32, 96), (64, 64)]
    x = fake_images(3, sizes, generator)
    found = adapter(x)
    assert found.grids == ((2, 2), (1, 3), (2, 2))
    assert found.valid.sum(1).tolist() == [5, 4, 5]
    for row, (height, width) in enumerate(sizes):
        image = x.values[row : row + 1, :, :height, :width]
        alone = adapter(ModalityInput(image, torch.tensor([0]), x.sizes[row : row + 1])).tokens[0]
        torch.testing.assert_close(found.tokens[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_frozen_backbone_stays_frozen(generator):
    adapter = adapter_of(freeze=True).train()
    assert adapter.training
    assert not any(part.training for part in adapter.backbone.modules())
    before = {name: value.clone() for name, value in adapter.backbone.state_dict().items()}
    x = fake_images(3, [(64, 64)] * 3, generator)
    first = adapter(x)
    first.tokens.square().sum().backward()
    assert {name for name, p in adapter.named_parameters() if p.grad is not None} == {
        "cls_token",
        "proj.weight",
        "proj.bias",
    }
    assert all(torch.equal(value, before[name]) for name, value in adapter.backbone.state_dict().items())
    assert torch.equal(adapter.eval()(x).tokens, first.tokens)
    moving = adapter_of().train()
    moving(x)
    assert not torch.equal(moving.backbone.state_dict()["bn1.running_mean"], before["bn1.running_mean"])


def test_drop_path_and_other_arguments_reach_timm():
    adapter = adapter_of(VIT, (32, 32), create=SMALL_VIT, drop_path=0.3)
    assert adapter.backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    grey = adapter_of(create={"in_chans": 1})
    assert grey(fake_images(1, [(64, 64)], torch.Generator())).tokens.shape == (1, 5, 12)
    with pytest.raises(ShapeError, match=r"image: images of 3 channels; expected 1. Set create.in_chans"):
        grey(fake_images(3, [(64, 64)], torch.Generator()))


def test_a_size_that_the_backbone_refuses_is_one_clear_line(generator):
    adapter = adapter_of(VIT, (32, 32), create=SMALL_VIT)
    with pytest.raises(
        ShapeError, match=r"image: deit.* refuses images of \(3, 40, 32\) .*Set preprocess.size, create"
    ):
        adapter(fake_images(3, [(40, 32)], generator))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet81"}, "model: 'resnet81' is unknown to timm .*Did you mean 'resnet18'"),
        ({"model": "resnet18.nope"}, "model: resnet18 has no weights tagged 'nope'"),
        (
            {"create": {"num_classes": 3}},
            "create: num_classes; expected arguments that have no option of their own",
        ),
        ({"create": {"colour": 3}}, r"image.create: resnet10t refuses its arguments \(.*colour"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        adapter_of(**options)


def test_pretrained_without_network_is_one_clear_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_zoo, "_hub_answers", lambda: False)
    with pytest.raises(
        CheckpointError, match=r"image.pretrained: no weights of resnet10t .*Set pretrained=false"
    ) as caught:
        adapter_of(pretrained=True)
    assert "\n" not in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False


def test_preprocess_follows_timms_own_evaluation_transform():
    import timm

    config = TimmAdapter.Config(model=CONV)
    record = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(CONV).to_dict())
    transform = timm.data.create_transform(**record)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)
    found, expected = config.preprocess.build()(picture).values, transform(picture)
    assert found.shape == expected.shape == (3, 176, 176)
    torch.testing.assert_close(found, expected, atol=1.01 / 255 / 0.22, rtol=0)


def test_preprocess_options_override_the_record():
    config = TimmAdapter.Config(model=VIT, create={"img_size": 64})
    filled = config.preprocess.filled()
    assert (filled.size, filled.crop_share, filled.resize) == ((64, 64), 1.0, Resize.CROP)
    assert filled.mean == (0.485, 0.456, 0.406)
    own = TimmPreprocess.Config(
        model=VIT, size=(32, 48), mean=(0.5, 0.5, 0.5), crop_share=0.8, resize=Resize.SQUASH
    )
    item = own.build()(np.full((32, 48, 3), 255, np.uint8))
    expected = torch.tensor([0.5 / 0.229, 0.5 / 0.224, 0.5 / 0.225])[:, None, None].expand(3, 32, 48)
    torch.testing.assert_close(item.values, expected)
    assert TimmPreprocess.Config(model=CONV).filled().crop_share == 0.875


def test_preprocess_decodes_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = TimmPreprocess.Config(model=CONV).build().decode((tmp_path / "x.png").read_bytes(), "x.png")
    assert np.array_equal(found, pixels)
