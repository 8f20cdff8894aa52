"""What runs over the pipe: a length, a JSON header, raw bytes. No I/O here, and no pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_LENGTHS = struct.Struct(">II")  # of the header, of all the bytes behind it
_HEADER_LIMIT = 64 << 20  # a look at 100,000 generations is about 5 MiB
_BYTES_LIMIT = 64 << 20


class Frame(NamedTuple):
    """One request or answer: JSON values, and named bytes that stay outside of the JSON."""

    header: dict[str, Any]
    files: dict[str, bytes]


def encode(header: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> bytes:
    """Put a frame into bytes."""
    files = files or {}
    sizes = [[name, len(data)] for name, data in files.items()]
    text = json.dumps({"header": header, "files": sizes}, separators=(",", ":")).encode()
    body = b"".join(files.values())
    return _LENGTHS.pack(len(text), len(body)) + text + body


class Decoder:
    """Turns a stream of bytes back into frames, however it was cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that is complete now.

        Raises:
            ValueError: the other side does not speak in frames.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            text, body = _LENGTHS.unpack_from(self._buffer)
            if text > _HEADER_LIMIT or body > _BYTES_LIMIT:
                raise ValueError("a frame on the share worker's pipe is too long")
            end = _LENGTHS.size + text + body
            if len(self._buffer) < end:
                return
            frame = _parse(bytes(self._buffer[_LENGTHS.size : end]), text)
            del self._buffer[:end]
            yield frame


def _parse(data: bytes, text: int) -> Frame:
    outer = json.loads(data[:text])
    files, at = {}, text
    for name, size in outer["files"]:
        files[name] = data[at : at + size]
        at += size
    return Frame(outer["header"], files)
