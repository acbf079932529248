"""Numbers from .npy files, without pickles."""

from __future__ import annotations

import io

import numpy as np

from mmzoo.errors import DataError


def read_npy(data: bytes, name: str) -> np.ndarray:
    """Read a .npy file's bytes as a float32 array; pickled objects and archives are refused."""
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise TypeError("an archive of several arrays")
        return values.astype(np.float32)
    except (ValueError, TypeError, EOFError, OSError) as error:
        found = f"unreadable array ({error})"
        raise DataError.at(name, found, "a .npy file of numbers", "Save it with numpy.save.") from error
