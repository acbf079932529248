"""The image adapter and its stems against convolutions; images alone against images in a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmzoo import schema
from mmzoo.batch import ModalityInput
from mmzoo.errors import ConfigError, ShapeError
from mmzoo.layers.patches import ConvStem, HmlpStem
from mmzoo.modalities.image import ImageAdapter, Stem
from mmzoo.modalities.image_preprocess import ImagePreprocess
from mmzoo.modalities.mixed_sizes import fake_images


def adapter_of(patch_size: int = 8, size: tuple[int, int] = (32, 32), **options) -> ImageAdapter:
    config = ImageAdapter.Config(
        preprocess=ImagePreprocess.Config(size=size), patch_size=patch_size, **options
    )
    adapter = ImageAdapter(config, name="image", dim=16, num_heads=2)
    drawn = torch.Generator().manual_seed(1)
    for bias in adapter.biases:
        torch.nn.init.normal_(bias.get_parameter("table"), generator=drawn)
    return adapter.eval()


def conv(x: torch.Tensor, part: torch.nn.Module) -> torch.Tensor:
    return F.conv2d(x, part.weight, part.bias, stride=part.weight.shape[-1])


def channel_norm(x: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def by_convolution(images: torch.Tensor, stem: torch.nn.Module) -> torch.Tensor:
    if isinstance(stem, ConvStem):
        x = conv(images, stem.proj)
    else:
        x = F.gelu(channel_norm(conv(images, stem.conv1), stem.norm1))
        x = F.gelu(channel_norm(conv(x, stem.conv2), stem.norm2))
        x = conv(x, stem.conv3)
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("patch_size", [4, 8, 12, 16, 32])
def test_hmlp_stem_is_three_convolutions(generator, patch_size):
    stem = HmlpStem(3, 8, patch_size).double()
    for parameter in stem.parameters():
        parameter.data.normal_(generator=generator)
    images = torch.randn(2, 3, 2 * patch_size, 3 * patch_size, generator=generator).double()
    strides = [stem.get_parameter(f"conv{i}.weight").shape[-1] for i in (1, 2, 3)]
    assert strides == [patch_size // 4, 2, 2]
    torch.testing.assert_close(stem(images), by_convolution(images, stem))


@pytest.mark.parametrize("bias", [True, False])
def test_conv_stem_is_a_convolution_gradients_too(generator, bias):
    stem = ConvStem(3, 8, 6, bias=bias).double()
    images = torch.randn(2, 3, 18, 6, generator=generator).double().requires_grad_()
    weight = torch.randn(2, 3, 8, generator=generator).double()
    wanted = [images, *stem.parameters()]
    found = torch.autograd.grad((stem(images) * weight).sum(), wanted)
    expected = torch.autograd.grad((by_convolution(images, stem) * weight).sum(), wanted)
    assert len(found) == (3 if bias else 2)
    torch.testing.assert_close(found, expected)


def test_tokens_are_cls_and_patches_plus_positions(generator):
    adapter = adapter_of(stem=Stem.CONV, num_bias_tables=3)
    x = fake_images(3, [(32, 32)] * 2, generator)
    found = adapter(x)
    patches = by_convolution(x.values, adapter.stem)
    expected = torch.cat([adapter.cls_token.expand(2, -1, -1), patches], 1) + adapter.positions.table
    torch.testing.assert_close(found.tokens, expected)
    assert found.num_prefix == 1
    assert found.grids == ((4, 4), (4, 4))
    assert [b.shape for b in found.biases] == [(1, 2, 17, 17)] * 3
    for bias, module in zip(found.biases, adapter.biases, strict=True):
        assert torch.equal(bias, module(4, 4))
    assert not torch.equal(found.biases[0], found.biases[1])


@pytest.mark.parametrize("stem", list(Stem))
def test_each_image_of_a_mixed_batch_is_as_alone(generator, stem):
    adapter = adapter_of(stem=stem)
    sizes = [(32, 32), (16, 24), (8, 40), (32, 32), (16, 24), (48, 8)]
    x = fake_images(3, sizes, generator)
    x.values[1, :, 16:] = torch.nan  # padding holds anything
    x.values[1, :, :, 24:] = torch.inf
    x = ModalityInput(x.values, torch.tensor([0, 2, 3, 5, 6, 9]), x.sizes)
    found = adapter(x)
    assert torch.equal(found.index, x.index)
    assert found.tokens.shape[1] == 17
    for row, (height, width) in enumerate(sizes):
        image = x.values[row : row + 1, :, :height, :width].contiguous()
        alone = adapter(ModalityInput(image, torch.zeros(1, dtype=torch.int64), x.sizes[row : row + 1]))
        n = alone.tokens.shape[1]
        assert n == 1 + height * width // 64
        assert found.grids[row] == alone.grids[0] == (height // 8, width // 8)
        assert found.valid[row].tolist() == [True] * n + [False] * (17 - n)
        torch.testing.assert_close(found.tokens[row, :n], alone.tokens[0])
        assert torch.equal(found.biases[0][row, :, :n, :n], alone.biases[0][0])


def test_padding_beside_images_of_one_size_is_never_read(generator):
    adapter = adapter_of(num_bias_tables=0)
    x = fake_images(3, [(16, 24)] * 2, generator)
    wide = torch.full((2, 3, 40, 32), torch.nan)
    wide[:, :, :16, :24] = x.values
    found = adapter(ModalityInput(wide, x.index, x.sizes))
    assert torch.equal(found.tokens, adapter(x).tokens)
    assert found.biases == ()


def test_gradient_reaches_positions_and_biases_of_every_grid(generator):
    adapter = adapter_of().train()
    x = fake_images(3, [(32, 32), (16, 40)], generator)
    found = adapter(x)
    (found.tokens[found.valid].square().sum() + found.biases[0].square().sum()).backward()
    assert bool((adapter.positions.table.grad.abs().sum(1) > 0).all())
    assert int((adapter.biases[0].table.grad.abs().sum(1) > 0).sum()) == 7 * 7 + 3


def test_images_that_do_not_fit_are_refused(generator):
    adapter = adapter_of()
    with pytest.raises(
        ShapeError, match="image: an image of 3 x 32 x 36; expected 3 channels and sides that patch"
    ):
        adapter(fake_images(3, [(32, 32), (32, 36)], generator))
    with pytest.raises(ShapeError, match="an image of 1 x 32 x 32"):
        adapter(fake_images(1, [(32, 32)], generator))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"patch_size": 6},
            "preprocess.size: size .32, 32. for patch_size 6; expected multiples of patch_size",
        ),
        (
            {"patch_size": 2},
            "patch_size: 2 with stem hmlp; expected a multiple of 4. Change it or set stem=conv.",
        ),
        (
            {"num_bias_tables": -1},
            "num_bias_tables: None, None, None, -1; expected positive grids and at least 0 tables",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        adapter_of(**options)


def test_hmlp_needs_a_width_that_four_divides():
    with pytest.raises(ConfigError, match="hmlp stem: patch_size 16, width 18; expected multiples of 4"):
        HmlpStem(3, 18, 16)


def test_released_size_has_the_released_number_of_parameters():
    adapter = ImageAdapter(ImageAdapter.Config(), name="image", dim=1536, num_heads=24)
    assert sum(p.numel() for p in adapter.parameters()) == 3_390_816


def test_without_cls_the_patches_keep_their_positions_and_the_table_its_row(generator):
    sizes = {
        "preprocess": {"size": [48, 64]},
        "stem": "conv",
        "num_bias_tables": 0,
        "position_grid": 3,
        "position_cols": 4,
    }
    with_cls, without = (
        schema.parse(ImageAdapter.Config, {**sizes, "cls_token": cls}).build(
            name="image", dim=12, num_heads=2
        )
        for cls in (True, False)
    )
    without.load_state_dict({k: v for k, v in with_cls.state_dict().items() if k != "cls_token"})
    given = fake_images(3, [(48, 64), (48, 64)], generator)
    found, wanted = without(given), with_cls(given)
    assert (found.num_prefix, found.grids) == (0, ((3, 4), (3, 4)))
    assert without.positions.table.shape == (13, 12)
    torch.testing.assert_close(found.tokens, wanted.tokens[:, 1:])
    rows = without.positions.table[1:].unflatten(0, (3, 4))
    torch.testing.assert_close(
        found.tokens - without.stem(given.values), rows.flatten(0, 1).expand(2, -1, -1)
    )
    larger = without.positions(6, 8)[1:].unflatten(0, (6, 8))
    torch.testing.assert_close(larger, bicubic(rows, 6, 8), atol=1e-6, rtol=1e-5)


def bicubic(grid, rows, cols):
    made = torch.nn.functional.interpolate(grid.permute(2, 0, 1)[None], (rows, cols), mode="bicubic")
    return made[0].permute(1, 2, 0)


def test_relative_biases_need_a_cls_token():
    with pytest.raises(ConfigError, match="cls_token=false with 1 relative tables"):
        schema.parse(ImageAdapter.Config, {"cls_token": False})
