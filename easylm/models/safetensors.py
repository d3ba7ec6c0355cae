"""The safetensors format: where each tensor lies in a file, reading ranges of rows.

A file: 8 bytes n, n bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
Paths are local or remote (gs://); only the bytes asked for are read.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import NamedTuple

import fsspec
import ml_dtypes
import numpy as np

from easylm.errors import UserError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit


class Tensor(NamedTuple):
    """A tensor in a file; its first byte is byte `start` of that file."""

    fs: fsspec.AbstractFileSystem
    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


def filesystem(path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path, and the path on it."""
    try:
        fs, root = fsspec.core.url_to_fs(str(path))
    except (ImportError, ValueError) as e:
        raise UserError(f"{path}: cannot be opened: {e}") from e
    return fs, root.rstrip("/") or "/"


def tensors(fs, file: str) -> dict[str, Tensor]:
    """All tensors of a file. A damaged or truncated file is an error."""
    size = fs.size(file)
    head = fs.cat_file(file, 0, 8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else _LONGEST_HEADER
    if length > min(size - 8, _LONGEST_HEADER):
        raise _damaged(file, f"its {size} bytes do not hold the header")
    try:
        header = json.loads(fs.cat_file(file, 8, 8 + length))
        header.pop("__metadata__", None)
        found = {k: _tensor(fs, file, k, v, 8 + length) for k, v in header.items()}
        ends = (v["data_offsets"][1] for v in header.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise _damaged(file, f"the header is not readable ({e!r})") from e
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise _damaged(file, f"it has {size} bytes, its header speaks of {expected}")
    return found


def read(tensor: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows start:stop of a tensor, reading only their bytes."""
    dtype, rows = DTYPES[tensor.dtype], tensor.shape[0]
    stop = rows if stop is None else stop
    width = dtype.itemsize * math.prod(tensor.shape[1:])
    begin, end = (tensor.start + width * row for row in (start, stop))
    data = tensor.fs.cat_file(tensor.file, begin, end) if end > begin else b""
    if len(data) != end - begin:
        raise _damaged(tensor.file, f"it ends inside {tensor.name}")
    return np.frombuffer(data, dtype).reshape(stop - start, *tensor.shape[1:])


def header(shapes: Mapping[str, tuple[int, ...]], dtype) -> bytes:
    """What comes before the data of these tensors, written in this order."""
    dtype, at = np.dtype(dtype), 0
    entries = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        end = at + dtype.itemsize * math.prod(shape)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _tensor(fs, file, name, entry, data_start) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    dtype = entry["dtype"]
    if dtype in DTYPES and end - begin != DTYPES[dtype].itemsize * math.prod(shape):
        raise ValueError(f"{name}: {dtype}{list(shape)} is not {end - begin} bytes")
    return Tensor(fs, file, name, dtype, shape, data_start + begin)


def _damaged(file: str, why: str) -> UserError:
    return UserError(
        f"{file} is truncated or not a safetensors file: {why}; copy it again"
    )
