"""Preprocessing of images against Pillow and torchvision; augmentation against its definition."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmzoo.errors import ConfigError, DataError
from mmzoo.modalities.image_augment import ImageAugment, Policy, change_pixels, erase, random_box
from mmzoo.modalities.image_preprocess import ImagePreprocess, Interpolation, Resize
from mmzoo.modalities.pixels import to_pixels

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def picture(height: int, width: int) -> np.ndarray:
    """Draw a smooth coloured picture with a little texture."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(x / 7 + y / 13), np.cos(y / 5), np.sin((x + y) / 9)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return (127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def preprocess(**options) -> ImagePreprocess:
    return ImagePreprocess.Config(**options).build()


def levels(values: torch.Tensor) -> np.ndarray:
    """Undo the normalisation: 8-bit levels (h w c)."""
    return (values.permute(1, 2, 0).numpy() * STD + MEAN) * 255


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_normalisation_is_that_of_clip():
    pixels = picture(8, 12)
    item = preprocess(size=(8, 12))(pixels)
    expected = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    assert item.values.dtype == torch.float32
    assert item.values.is_contiguous()
    np.testing.assert_allclose(item.values.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("interpolation", "filter_"), [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize("size", [(32, 32), (20, 64), (96, 100)])
def test_squash_resizes_as_pillow_does(interpolation, filter_, size):
    pixels = picture(60, 80)
    found = preprocess(size=size, interpolation=Interpolation(interpolation))(pixels).values
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], filter_)).astype(float)
    np.testing.assert_allclose(levels(found), expected, atol=1.01)


@pytest.mark.parametrize(
    ("shape", "size"), [((60, 80), (32, 32)), ((80, 60), (32, 32)), ((50, 50), (16, 32))]
)
@pytest.mark.parametrize("share", [1.0, 0.9])
def test_crop_is_resize_and_centre_crop_of_torchvision(shape, size, share):
    from torchvision.transforms.v2 import functional as tv

    pixels = picture(*shape)
    found = preprocess(size=size, resize=Resize.CROP, crop_share=share)(pixels).values
    tight = int(max(size) / share) if size[0] == size[1] else None
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if tight is not None:
        image = tv.resize(image, [tight], tv.InterpolationMode.BICUBIC, antialias=True)
    else:
        wide = int(32 / share)
        image = tv.resize(image, [wide, wide], tv.InterpolationMode.BICUBIC, antialias=True)
    expected = tv.center_crop(image, list(size)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(levels(found), expected, atol=1.01)


def test_pad_keeps_the_shape_and_fills_with_the_mean():
    pixels = picture(20, 40)
    found = preprocess(size=(32, 32), resize=Resize.PAD)(pixels).values
    inner = np.asarray(Image.fromarray(pixels).resize((32, 16), 3)).astype(float)
    np.testing.assert_allclose(levels(found)[8:24], inner, atol=1.01)
    assert float(found[:, :8].abs().max()) < 0.01
    assert float(found[:, 24:].abs().max()) < 0.01


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((100, 100), (64, 64)), ((50, 200), (32, 128)), ((300, 100), (112, 32)), ((1, 500), (16, 1424))],
)
def test_aspect_keeps_the_shape_in_whole_patches(shape, expected):
    found = preprocess(size=(64, 64), resize=Resize.ASPECT, side_multiple=16)(picture(*shape)).values
    assert found.shape == (3, *expected)


def test_an_image_of_the_right_size_is_passed_on_bit_by_bit():
    pixels = picture(32, 48)
    for how in Resize:
        found = preprocess(size=(32, 48), resize=how)(pixels).values
        np.testing.assert_allclose(levels(found), pixels, atol=1e-3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG"])
def test_formats_decode_as_pillow_decodes_them(kind):
    data = encoded(Image.fromarray(picture(24, 30)), kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    found = preprocess().decode(data, f"x.{kind.lower()}")
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "CMYK", "YCbCr", "P", "HSV"])
def test_modes_become_rgb(mode):
    image = Image.fromarray(picture(10, 12)).convert(mode)
    assert np.array_equal(to_pixels(image).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_decode_as_pillow_decodes_them(mode):
    data = encoded(Image.fromarray(picture(24, 30)).convert(mode), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(preprocess().decode(data, "x.jpg"), expected)


def test_palette_with_transparency_loses_only_its_alpha():
    image = Image.fromarray(picture(10, 12)).quantize(16)
    data = encoded(image, "PNG", transparency=bytes([0, 128] + [255] * 14))
    assert np.array_equal(preprocess().decode(data, "x.png"), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = (np.arange(12 * 10).reshape(12, 10) * 500).astype(np.uint16)
    found = preprocess().decode(encoded(Image.fromarray(grey), "PNG"), "x.png")
    assert np.array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_turns_the_image_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture(24, 40)), kind, exif=exif)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    assert np.array_equal(preprocess().decode(data, "x"), np.rot90(stored, turns))


def test_cifar_decodes_as_pillow_does(shared):
    import tarfile

    with tarfile.open(shared / "data" / "cifar10" / "val.tar") as archive:
        for member in archive.getmembers()[:40]:
            if member.isfile():
                data = archive.extractfile(member).read()
                expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                assert np.array_equal(preprocess().decode(data, member.name), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.6])
def test_broken_files_are_named(kind, keep):
    data = encoded(Image.fromarray(picture(64, 64)), kind)
    with pytest.raises(
        DataError, match=r"bad.img: unreadable image \([^<]*\); expected a format that Pillow"
    ):
        preprocess().decode(data[: int(keep * len(data))], "bad.img")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a path", "image: str; expected PIL.Image or a uint8 array"),
        (np.zeros((4, 4, 3), np.float32), "image: float32 array .4, 4, 3.; expected uint8"),
        (np.zeros((3, 4, 5), np.uint8), "image: uint8 array .3, 4, 5."),
        (np.zeros((0, 4, 3), np.uint8), "image: array .0, 4, 3.; expected at least one pixel"),
    ],
)
def test_raw_input_of_another_form_is_refused(raw, message):
    with pytest.raises(DataError, match=message):
        preprocess()(raw)


def test_arrays_of_one_two_or_four_channels_are_taken():
    pixels = picture(6, 7)
    rgba = np.concatenate([pixels, pixels[..., :1]], axis=2)
    assert np.array_equal(to_pixels(rgba).permute(1, 2, 0).numpy(), pixels)
    for grey in (pixels[..., 0], pixels[..., :1]):
        assert np.array_equal(to_pixels(grey).numpy(), np.repeat(pixels[None, ..., 0], 3, axis=0))
    upside_down = pixels[::-1]
    assert np.array_equal(to_pixels(upside_down).permute(1, 2, 0).numpy(), upside_down)


def test_the_raw_array_is_never_written_to(generator):
    pixels = picture(32, 32)
    before = pixels.copy()
    augment = ImageAugment(flip_prob=1.0, erase_prob=1.0, colour_jitter=0.4, pad_crop=4)
    preprocess(size=(32, 32), augment=augment)(pixels, generator=generator)
    assert np.array_equal(pixels, before)


AUGMENTS = [
    {"crop_scale": (0.2, 0.9)},
    {"pad_crop": 4},
    {"flip_prob": 0.5},
    {"policy": Policy.TRIVIAL_AUGMENT},
    {"policy": Policy.RAND_AUGMENT},
    {"colour_jitter": 0.4},
    {"erase_prob": 0.7},
]


@pytest.mark.parametrize("options", AUGMENTS, ids=lambda o: f"{next(iter(o))}-{next(iter(o.values()))}")
def test_augmentation_depends_on_the_generator_alone(options):
    make, pixels = preprocess(size=(32, 32), augment=ImageAugment(**options)), picture(40, 36)

    def run(seed: int) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(seed)
        return torch.stack([make(pixels, generator=drawn).values for _ in range(4)])

    torch.manual_seed(1)
    first, state = run(5), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, run(5))
    assert not torch.equal(first, run(6))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    plain = preprocess(size=(32, 32))(pixels).values
    assert torch.equal(make(pixels).values, plain)
    assert any(not torch.equal(one, plain) for one in first)


def test_random_boxes_have_the_area_and_shape_asked_for(generator):
    augment = ImageAugment(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0))
    boxes = torch.tensor([random_box(200, 300, augment, generator) for _ in range(2000)], dtype=torch.float64)
    top, left, rows, cols = boxes.unbind(1)
    assert bool((top + rows <= 200).all())
    assert bool((left + cols <= 300).all())
    share, ratio = rows * cols / 60_000, cols / rows
    assert 0.24 < float(share.min()) < 0.26 < 0.49 < float(share.max()) < 0.51
    assert 0.49 < float(ratio.min()) < 0.52 < 1.9 < float(ratio.max()) < 2.02
    assert float(top.min()) == 0
    assert float((top + rows).max()) == 200


def test_a_picture_too_narrow_for_any_box_gives_its_middle(generator):
    augment = ImageAugment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert random_box(10, 100, augment, generator) == (0, 45, 10, 10)
    assert random_box(100, 10, augment, generator) == (45, 0, 10, 10)


def test_random_crop_shows_the_box_drawn():
    pixels = picture(60, 80)
    make = preprocess(size=(24, 24), augment=ImageAugment(crop_scale=(0.3, 0.3)))
    found = make(pixels, generator=torch.Generator().manual_seed(4)).values
    top, left, rows, cols = random_box(60, 80, make.config.augment, torch.Generator().manual_seed(4))
    part = Image.fromarray(pixels[top : top + rows, left : left + cols])
    np.testing.assert_allclose(levels(found), np.asarray(part.resize((24, 24), 3)).astype(float), atol=1.01)


def test_flip_and_shift_move_pixels_only(generator):
    pixels = to_pixels(picture(16, 16))
    assert torch.equal(change_pixels(pixels, ImageAugment(flip_prob=1.0), generator), pixels.flip(2))
    framed = torch.zeros(3, 22, 22, dtype=torch.uint8)
    framed[:, 3:19, 3:19] = pixels
    windows = {(i, j): framed[:, i : i + 16, j : j + 16] for i in range(7) for j in range(7)}
    seen = set()
    for _ in range(200):
        moved = change_pixels(pixels, ImageAugment(pad_crop=3), generator)
        seen |= {where for where, window in windows.items() if torch.equal(window, moved)}
    assert len(seen) > 40


def test_erase_sets_one_rectangle_to_the_mean(generator):
    image = torch.ones(3, 40, 40)
    found = erase(image, ImageAugment(erase_prob=1.0), generator)
    gone = (found == 0).all(0)
    rows, cols = gone.any(1).nonzero(), gone.any(0).nonzero()
    area = (rows.max() - rows.min() + 1) * (cols.max() - cols.min() + 1)
    assert int(gone.sum()) == int(area) == int((found == 0).sum()) // 3
    assert 0.01 * 1600 < int(area) < 0.35 * 1600


def test_colour_jitter_of_a_grey_picture_keeps_it_grey(generator):
    grey = to_pixels(np.repeat(picture(16, 16)[..., :1], 3, axis=2))
    for _ in range(10):
        found = change_pixels(grey, ImageAugment(colour_jitter=0.5), generator)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 8)}, "size: size .0, 8., side_multiple 16; expected positive pixels"),
        ({"std": (0.0, 1.0, 1.0)}, "std, crop_share: std"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        preprocess(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip_prob": 1.5}, "augment.flip_prob: 1.5; expected 0 … 1"),
        ({"crop_scale": (0.5, 0.2)}, "augment.crop_scale: .0.5, 0.2.; expected 0 < smallest <= largest"),
        ({"crop_scale": (0.5, 1.2)}, "augment.crop_scale: .0.5, 1.2.; expected shares of at most 1"),
        ({"pad_crop": -1}, "augment: pad_crop -1"),
    ],
)
def test_wrong_augmentation_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ImageAugment(**options)
