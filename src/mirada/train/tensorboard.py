"""A run's log as TensorBoard reads it: a file of records with checksums, each an Event message."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from mirada.errors import MiradaError

from .log import history

NAME = "events.out.tfevents.0.mirada"
POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), reflected


def export(run: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Write each number of each step of a run's log; the file. Raises MiradaError without steps."""
    lines = history(run)
    if not lines:
        raise MiradaError(f"{run}: its log holds no step yet")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside, seconds = folder / f".{NAME}", 0.0
    with aside.open("wb") as file:
        file.write(_record(_double(1, seconds) + _bytes(3, b"brain.Event:2")))
        for line in lines:
            seconds += line.get("seconds", 0.0)
            values = b"".join(_bytes(1, _bytes(1, name.encode()) + _float(2, value))
                              for name, value in line.items()
                              if name != "step" and isinstance(value, int | float))
            event = _double(1, seconds) + _varint(2 << 3) + _varint(line["step"])
            file.write(_record(event + _bytes(5, values)))
    os.replace(aside, folder / NAME)
    return folder / NAME


def _record(message: bytes) -> bytes:
    size = struct.pack("<Q", len(message))
    return size + _masked(size) + message + _masked(message)


def _masked(content: bytes) -> bytes:
    """A checksum, turned so that a checksum of checksums says something."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> list[int]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ POLYNOMIAL * (byte & 1)
        found.append(byte)
    return found


TABLE = _table()


def crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", number)


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", number)
