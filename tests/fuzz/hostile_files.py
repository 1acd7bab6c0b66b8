"""Damages of files: functions from the bytes of a good file to those of a bad one.

They know nothing of the package, so that any door that reads files can be tried with them.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Damage = Callable[[bytes], bytes]

HOSTILE_VALUES: tuple[Any, ...] = (
    [],
    {},
    None,
    "text",
    -1,
    0,
    10**400,
    float("nan"),
    float("inf"),
    1e308,
    True,
    [[]],
)
"""What a place of a JSON file is replaced by."""


def keep_share(share: float) -> Damage:
    """Truncate a file."""
    return lambda content: content[: int(share * len(content))]


def flip_bit(seed: int) -> Damage:
    """Flip one bit, chosen by the seed."""

    def damage(content: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        found = bytearray(content)
        found[int(rng.integers(len(found)))] ^= 1 << int(rng.integers(8))
        return bytes(found)

    return damage


def overwrite(seed: int) -> Damage:
    """Overwrite forty bytes by random ones."""

    def damage(content: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        start = int(rng.integers(len(content)))
        return content[:start] + rng.bytes(40) + content[start + 40 :]

    return damage


ANY_FILE: Mapping[str, Damage] = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": keep_share(0.5),
    "end missing": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "all bytes": lambda content: bytes(range(256)) * 4,
    "nested JSON": lambda content: b"[" * 100_000,
    "nested JSON that ends": lambda content: b"[" * 100_000 + b"]" * 100_000,
    "a huge number": lambda content: b"1" + b"0" * 400,
    "a number of many digits": lambda content: b"1" * 10_000,
    "JSON of another form": lambda content: b'{"kind": [], "format": {}, "count": 1e999}',
    "a zip file of nothing": lambda content: pack({}),
    "another zip file": lambda content: pack({"readme.txt": b"nothing"}),
    "no NumPy array": lambda content: b"\x93NUMPY\x01\x00",
    "an array of a later version": lambda content: b"\x93NUMPY\x09\x00" + bytes(100),
    "a huge array": lambda content: make_array_header("<c8", (2**40, 5, 24)),
    "an array of objects": lambda content: make_array_header("|O", (2, 5, 24)) + bytes(2000),
    "an array of a negative shape": lambda content: make_array_header("<c8", (-1, 5, 24)),
    "an array of another language": lambda content: (
        make_array_header("<c8", (2, 5, 24)).replace(b"(2, 5, 24)", b"(2L,5,24)") + bytes(2000)
    ),
    "an array without a closed bracket": lambda content: (
        make_array_header("<c8", (2, 5, 24)).replace(b"24)", b"24(") + bytes(2000)
    ),
    "an array of a huge header": lambda content: (
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"
    ),
    **{f"flipped bit {seed}": flip_bit(seed) for seed in range(6)},
    **{f"overwritten {seed}": overwrite(seed) for seed in range(2)},
}
"""Damages of any file."""


def make_array_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The beginning of a ``.npy`` file."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (64 - (len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


# Zip files


def unpack(content: bytes) -> dict[str, bytes]:
    """The entries of a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(entries: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def edit_records(content: bytes, name: str, **fields: int) -> bytes:
    """Change what a zip file says of an entry, at both of its places.

    Args:
        content: The file.
        name: The entry.
        **fields: ``flags``, ``method``, ``crc``, ``packed`` or ``size``.
    """
    places = {
        "flags": (6, 8, "<H"),
        "method": (8, 10, "<H"),
        "crc": (14, 16, "<I"),
        "packed": (18, 20, "<I"),
        "size": (22, 24, "<I"),
    }
    found, encoded = bytearray(content), name.encode()
    for start, length, column in ((b"PK\x03\x04", 30, 0), (b"PK\x01\x02", 46, 1)):
        record = content.find(start)
        while content[record + length : record + length + len(encoded)] != encoded:
            record = content.index(start, record + 1)
        for field, value in fields.items():
            struct.pack_into(places[field][2], found, record + places[field][column], value)
    return bytes(found)


def make_bomb(entries: Mapping[str, bytes], name: str, start: bytes, zeros: int) -> bytes:
    """A zip file with an entry that ends in MiB of zeros, honestly stated, in a thousandth of that.

    Args:
        entries: The other entries.
        name: The entry.
        start: Its beginning.
        zeros: MiB.
    """

    def deflate(part: bytes) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)

    chunk = bytes(2**20)
    crc = zlib.crc32(start)
    for _ in range(zeros):
        crc = zlib.crc32(chunk, crc)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    packed = deflate(start) + zeros * deflate(chunk) + end
    content = pack({**entries, name: packed}, zipfile.ZIP_STORED)
    return edit_records(content, name, method=8, crc=crc, size=len(start) + zeros * 2**20)


def list_zip_damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Damages of each entry of a zip file."""
    entries = unpack(content)
    yield "LZMA", pack(entries, zipfile.ZIP_LZMA)
    yield "bzip2", pack(entries, zipfile.ZIP_BZIP2)
    for name, held in entries.items():
        others = {key: value for key, value in entries.items() if key != name}
        yield f"{name} missing", pack(others)
        yield f"{name} empty", pack({**entries, name: b""})
        yield f"{name} text", pack({**entries, name: b"text"})
        yield f"{name} garbage", pack({**entries, name: bytes(range(256)) * 8})
        yield f"{name} nested", pack({**entries, name: b"[" * 100_000})
        yield f"{name} half", pack({**entries, name: held[: len(held) // 2]})
        yield f"{name} longer", pack({**entries, name: held + bytes(64)})
        yield f"{name} encrypted", edit_records(content, name, flags=1)
        yield f"{name} of an unknown method", edit_records(content, name, method=77)
        yield f"{name} said to be LZMA", edit_records(content, name, method=14)
        yield f"{name} said to be bzip2", edit_records(content, name, method=12)
        yield f"{name} said to be larger", edit_records(content, name, size=2**32 - 2)
        yield f"{name} said to be smaller", edit_records(content, name, size=8)
        yield f"{name} of another checksum", edit_records(content, name, crc=1)
        yield f"{name} a bomb", make_bomb(others, name, held, 72)


# JSON


def list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places of a JSON value, by their keys; not more than two of a list."""
    yield place
    if isinstance(value, dict):
        for key, held in value.items():
            yield from list_places(held, (*place, key))
    elif isinstance(value, list):
        for index, held in enumerate(value[:2]):
            yield from list_places(held, (*place, index))


def list_json_damages(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """JSON in which one place is replaced by a hostile value, or missing: a selection of them."""
    places = list(list_places(json.loads(content)))
    rng = np.random.default_rng(seed)
    top = [place for place in places if len(place) == 1]
    for number in range(count):
        chosen = top if number % 2 else places
        place = chosen[int(rng.integers(len(chosen)))]
        index = int(rng.integers(len(HOSTILE_VALUES) + 1))
        is_missing = index == len(HOSTILE_VALUES)
        value = None if is_missing else HOSTILE_VALUES[index]
        text = "missing" if is_missing else repr(value)[:12]
        yield (
            f"{'.'.join(map(str, place))} {text}",
            replace_place(content, place, value, is_missing),
        )


def replace_place(content: bytes, place: tuple[Any, ...], value: Any, is_missing: bool) -> bytes:
    """JSON with another value in a place, or without it."""
    held = json.loads(content)
    if not place:
        return json.dumps(value).encode()
    parent = held
    for key in place[:-1]:
        parent = parent[key]
    if is_missing:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return json.dumps(held).encode()


# Tensors


def list_tensor_damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Damages of a safetensors file that leave it one."""
    from safetensors.torch import load, save

    tensors = load(content)
    for number, name in enumerate(sorted(tensors)):
        value = tensors[name]
        if number % max(1, len(tensors) // 4) == 0:
            yield f"{name} missing", save({k: v for k, v in tensors.items() if k != name})
            yield f"{name} larger", save({**tensors, name: value.new_zeros(*value.shape, 3)})
            yield f"{name} flat", save({**tensors, name: value.new_zeros(10**9, 0)})
            if value.is_floating_point():
                yield f"{name} NaN", save({**tensors, name: value * float("nan")})
                yield f"{name} infinite", save({**tensors, name: value.abs() + float("inf")})
    yield "none", save({})
    yield "more", save({**tensors, "surprise": next(iter(tensors.values())).clone()})
    for text in (
        {"a": {"dtype": "F32", "shape": [2**60, 2**60], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 4]}},
        {"a": {"dtype": [], "shape": {}, "data_offsets": None}},
        {"a": 3, "__metadata__": 4},
    ):
        header = json.dumps(text).encode()
        yield f"header {str(text)[:40]}", struct.pack("<Q", len(header)) + header + bytes(4)
    yield "a huge header", struct.pack("<Q", 2**60) + b"{}"
