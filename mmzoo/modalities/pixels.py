"""From a file's bytes or a picture in memory to 8-bit RGB pixels, whatever format, mode or orientation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmzoo.errors import DataError

_JPEG_START = b"\xff\xd8\xff"


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image in any format that Pillow knows, turned upright as its EXIF tag says; DataError where
    broken.

    Why: JPEGs take torchvision's decoder, which gives the same pixels as Pillow and is up to four times as
    fast on small ones; whatever it does not take (CMYK, odd files) goes to Pillow.
    """
    if data.startswith(_JPEG_START):
        pixels = _decode_jpeg(data)
        if pixels is not None:
            return pixels
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return _picture_to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)  # its text names a buffer of ours
        found = f"unreadable image ({'no format is recognised' if unknown else error})"
        raise DataError.at(
            name, found, "a format that Pillow reads", "Convert or remove the file."
        ) from error


def picture_size(raw: Any) -> tuple[int, int]:
    """Return the height and width of what `to_pixels` takes (pixels)."""
    if hasattr(raw, "shape"):
        return int(raw.shape[0]), int(raw.shape[1])
    return int(raw.height), int(raw.width)


def to_pixels(raw: Any) -> UInt8[Tensor, "3 h w"]:
    """Return a PIL.Image or uint8 array (h w), (h w 1), (h w 3) or (h w 4) as RGB, in memory h w c."""
    if not isinstance(raw, np.ndarray):
        from PIL import Image

        if not isinstance(raw, Image.Image):
            found = f"{type(raw).__name__}"
            raise DataError.at("image", found, "PIL.Image or a uint8 array (h w c)", "Decode the file first.")
        raw = _picture_to_rgb(raw)
    if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or (raw.ndim == 3 and raw.shape[2] not in (1, 3, 4)):
        found = f"{raw.dtype} array {raw.shape}"
        raise DataError.at("image", found, "uint8 (h w), (h w 1), (h w 3) or (h w 4)", "Convert the array.")
    if 0 in raw.shape:
        raise DataError.at("image", f"array {raw.shape}", "at least one pixel", "Drop the image.")
    pixels = raw[..., None] if raw.ndim == 2 else raw[..., :3]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if not pixels.flags.writeable or any(stride < 0 for stride in pixels.strides):
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_jpeg(data: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels = decode_jpeg(encoded, mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    except RuntimeError:
        return None
    if not isinstance(pixels, Tensor) or pixels.shape[0] not in (1, 3):
        return None
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _picture_to_rgb(picture: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Drop alpha; bring 16-bit and 32-bit grey (values 0 … 65535) to 8 bits; expand palettes."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64) >> 8
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
