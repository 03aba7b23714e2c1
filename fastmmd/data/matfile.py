"""Arrays of numbers in MATLAB files of versions 5 to 7.

After "MAT-File Format" (The MathWorks). SciPy's reader (1.17) ends the process by a segmentation fault where a damaged
file names an element of unknown type.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmmd.data.limits import check_expansion, check_memory
from fastmmd.errors import UserError, first_line

HEADER = 128  # bytes; the last four are version and byte order
CHUNK = 1 << 20
MATRIX, COMPRESSED = 14, 15
#: Type of an element -> of its numbers.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: Class of an array that holds something else than numbers.
OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "opaque"}
CLASSES_OF_NUMBERS = range(6, 16)
COMPLEX = 0x800


def read_matlab(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of real numbers by name, in the types that they are stored in; nothing else in the file is read.

    Raises:
        UserError: it is no such file, has no such arrays, or takes more memory than there is.
    """
    listed, found = [], {}
    try:
        check_memory(path, path.stat().st_size // 4)
        content = path.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(content[126:HEADER])
        if order is None or struct.unpack(f"{order}H", content[124:126]) != (0x0100,):
            raise ValueError("not of version 5 to 7: save it with -v7")
        for matrix in _matrices(path, memoryview(content)[HEADER:], order):
            header = _header(matrix, order)
            listed.append(header.name)
            if header.name in names:
                found[header.name] = _array(path, header, order)
    except UserError:
        raise
    except Exception as error:  # whatever the broken content leads to
        raise UserError(f"{path}: cannot be read as a MATLAB file ({first_line(error)})") from error
    for name in names:
        if name not in found:
            raise UserError(f"{path}: no array named {name!r} among {', '.join(filter(None, listed)) or 'none'}")
    return found


def _elements(content: memoryview, order: str, *, padded: bool) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element, a tag and what follows; within arrays they are padded to eight bytes.

    Raises:
        ValueError: one is cut off.
    """
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}2I", content, at)
        start = at + 8
        if kind >> 16:  # a short one: size and type in the first four bytes, its content in the others
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        end = start + size
        if end > len(content):
            raise ValueError(f"{size} bytes expected, {len(content) - start} are left")
        yield kind, content[start:end]
        at = end + -end % 8 if padded else end


def _matrices(path: Path, content: memoryview, order: str) -> Iterator[memoryview]:
    """The arrays of a file, expanded where they are compressed."""
    expanded = 0
    for kind, packed in _elements(content, order, padded=False):
        if kind == COMPRESSED:
            expander, parts = zlib.decompressobj(), []
            while not expander.eof and (part := expander.decompress(packed, CHUNK)):
                expanded += len(part)
                check_expansion(path, expanded)
                parts.append(part)
                packed = memoryview(expander.unconsumed_tail)
            kind, matrix = next(_elements(memoryview(b"".join(parts)), order, padded=False), (0, packed))
        else:
            matrix = packed
        if kind == MATRIX:
            yield matrix


class _Header(NamedTuple):
    """Of an array, and the first part of its content: the real numbers of an array of numbers."""

    flags: int
    shape: tuple[int, ...]
    name: str
    stored: int  # the type of that part, 0 where there is none
    content: memoryview


def _header(matrix: memoryview, order: str) -> _Header:
    (_, flags), (_, shape), (_, name), *parts = islice(_elements(matrix, order, padded=True), 4)
    (bits,), sizes = struct.unpack_from(f"{order}I", flags), struct.unpack(f"{order}{len(shape) // 4}i", shape)
    stored, content = parts[0] if parts else (0, matrix[:0])
    return _Header(bits, sizes, str(name, "latin1"), stored, content)


def _array(path: Path, header: _Header, order: str) -> np.ndarray[Any, Any]:
    flags, shape, name, stored, content = header
    kind = flags & 0xFF
    if kind not in CLASSES_OF_NUMBERS:
        raise UserError(f"{path}: {name}: an array of numbers expected, got {OTHERS.get(kind, kind)!r}")
    if flags & COMPLEX:
        raise UserError(f"{path}: {name}: an array of real numbers expected, got complex ones")
    if min(shape, default=-1) < 0:
        raise ValueError(f"{name} has the shape {list(shape)}")
    check_memory(path, math.prod(shape))
    if stored not in NUMBERS:
        raise ValueError(f"{name} holds elements of type {stored}")
    dtype = np.dtype(NUMBERS[stored])
    flat = np.frombuffer(content, f"{order}{NUMBERS[stored]}") if content else np.empty(0, dtype)
    return flat.astype(dtype).reshape(shape, order="F")
