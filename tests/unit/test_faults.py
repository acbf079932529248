"""Faults: damaged content becomes one line that names the file; shares; real damaged files of each kind."""

from __future__ import annotations

import io
import logging
import pathlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmzoo import registry
from mmzoo.datamodules.faults import Fault, FaultLog, decoding
from mmzoo.errors import DataError, ShapeError
from mmzoo.modalities.base import Preprocess


def test_what_a_decoder_raises_names_the_file() -> None:
    for error in (ValueError("bad\n header"), OSError("truncated"), EOFError(), RuntimeError("psf")):
        with (
            pytest.raises(
                DataError,
                match=r"^a/b\.wav: unreadable \(.*\); expected an intact file\. Mend or remove it\.$",
            ),
            decoding("a/b.wav"),
        ):
            raise error


def test_an_error_that_names_the_file_passes_and_others_get_the_name() -> None:
    with pytest.raises(ShapeError, match=r"^b\.wav: odd"), decoding("a/b.wav"):
        raise ShapeError("b.wav: odd")
    with pytest.raises(DataError, match=r"^a/b\.wav: fmri: no subject"), decoding("a/b.wav"):
        raise DataError("fmri: no subject")


def test_programming_errors_are_not_damage() -> None:
    with pytest.raises(TypeError), decoding("a"):
        raise TypeError("wrong call")


def test_the_share_is_of_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    log = FaultLog("train", 0.5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            log.start_epoch()
            log.add([Fault("1", "file1: cut.")], 2)
    assert [r.getMessage() for r in caplog.records] == ["train: skipped file1: cut."]
    with pytest.raises(DataError, match=r"^train: 2 of 2 samples are unreadable \(the first: file1: cut\)"):
        log.add([Fault("2", "file2: cut.")], 2)
    assert log.summary() == "train: 2 unreadable samples skipped"
    assert FaultLog("val", 0.5).summary() == ""


def written(kind: str) -> tuple[bytes, str]:
    """Return an intact file of a kind and its name."""
    out, rng = io.BytesIO(), np.random.default_rng(0)
    if kind == "jpeg":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(out, "JPEG")
    elif kind == "png":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(out, "PNG")
    elif kind in ("wav", "flac", "ogg"):
        soundfile.write(out, rng.uniform(-0.5, 0.5, 4000), 8000, format=kind.upper())
    else:
        np.save(out, rng.normal(size=(3, 4, 5, 1) if kind == "skeleton" else (20,)).astype(np.float32))
    endings = {"skeleton": "skeleton.npy", "fmri": "fmri.npy", "jpeg": "jpg"}
    return out.getvalue(), f"sub-01.{endings.get(kind, kind)}"


KINDS = {
    "jpeg": "image",
    "png": "image",
    "wav": "audio",
    "flac": "audio",
    "ogg": "audio",
    "skeleton": "skeleton",
    "fmri": "fmri",
}


DAMAGE = [(k, d) for k in KINDS for d in ("cut", "half", "empty", "noise")]
HEARD = [(k, "half") for k, kind in KINDS.items() if kind == "audio"]
"""What came before the cut of a sound can be heard: no damage."""


@pytest.mark.parametrize(("kind", "damage"), [pair for pair in DAMAGE if pair not in HEARD])
def test_real_damage_is_a_data_error(kind: str, damage: str) -> None:
    data, name = written(kind)
    preprocess: Preprocess = registry.find("modalities", KINDS[kind]).Config().preprocess.build()
    if KINDS[kind] != "skeleton":  # its preprocessing wants 25 joints
        with decoding(name):
            preprocess(preprocess.decode(data, name))
    kept = {"cut": data[:30], "half": data[: len(data) // 2], "empty": b"", "noise": bytes(range(256)) * 4}
    broken = kept[damage]
    with pytest.raises(DataError, match=r"sub-01\."), decoding(name):
        preprocess(preprocess.decode(broken, name))


def test_log_names_no_file_twice_over_splits(tmp_path: pathlib.Path) -> None:
    log = FaultLog(str(tmp_path), 1.0)
    log.add([Fault("1", "x"), Fault("1", "x")], 1)
    assert len(log.named) == 1
