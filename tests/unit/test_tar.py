"""The indexed tar against Python's own tarfile."""

from __future__ import annotations

import io
import pathlib
import pickle
import tarfile

import numpy as np
import pytest

from mmzoo.datamodules.tar import IndexedTar, is_tar
from mmzoo.errors import DataError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ["a/1.jpg", "b.txt", "deep/" * 18 + "x.npy", "./dot/é.wav", "zero.bin"]


def write(path: pathlib.Path, form: int, names: list[str]) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    content = {n: b"" if n == "zero.bin" else rng.bytes(int(rng.integers(1, 3000))) for n in names}
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "b.txt"
        tar.addfile(link)
    return content


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_of_tarfile(form: str, tmp_path: pathlib.Path) -> None:
    names = NAMES if form == "ustar" else [*NAMES, "long/" * 60 + "name.txt"]
    content = write(tmp_path / "x.tar", FORMATS[form], names)
    tar = IndexedTar(tmp_path / "x.tar")
    assert tar.names() == names
    for name in reversed(names):
        assert tar.read(name) == content[name]
    copy = pickle.loads(pickle.dumps(tar))
    assert copy.read("b.txt") == content["b.txt"]
    assert is_tar(tmp_path / "x.tar")


def test_a_wrong_name_a_cut_tar_and_a_compressed_one_are_said(tmp_path: pathlib.Path) -> None:
    content = write(tmp_path / "x.tar", FORMATS["gnu"], NAMES)
    tar = IndexedTar(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"x\.tar/none: no such member; expected a file of the tar\."):
        tar.read("none")
    place = tar.members["b.txt"]
    (tmp_path / "cut.tar").write_bytes((tmp_path / "x.tar").read_bytes()[: place.offset + 10])
    with pytest.raises(DataError, match=rf"cut\.tar/b\.txt: 10 of {len(content['b.txt'])} bytes"):
        IndexedTar(tmp_path / "cut.tar").read("b.txt")
    with tarfile.open(tmp_path / "gz.tar", "w:gz") as packed:
        packed.add(tmp_path / "x.tar", "x.tar")
    with pytest.raises(DataError, match=r"gz\.tar: a compressed file; expected an uncompressed tar\."):
        IndexedTar(tmp_path / "gz.tar").names()
    (tmp_path / "odd.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"odd\.tar: no header at byte 0; expected an uncompressed tar\."):
        IndexedTar(tmp_path / "odd.tar").names()


def test_real_tar(shared: pathlib.Path) -> None:
    path = shared / "data" / "cifar10" / "val.tar"
    tar = IndexedTar(path)
    with tarfile.open(path) as slow:
        members = [m for m in slow.getmembers() if m.isreg()]
        assert tar.names() == [m.name for m in members]
        for member in members[::100]:
            file = slow.extractfile(member)
            assert file is not None
            assert tar.read(member.name) == file.read()
