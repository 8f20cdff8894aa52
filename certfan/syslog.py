"""One event of ours as a message of RFC 5424, framed by octet counting (RFC 6587, RFC 5425). Bytes out, no socket.

Known limits: we have no enterprise number of our own, so the structured data is filed under the one that RFC 5612
reserves for examples, as others do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

SD_ID = "certfan@32473"
MOST_BYTES = 8192  # what a receiver should take (RFC 5425 section 4.3.1)
_LONGEST_VALUE = 512  # characters; what is longer stands in the text
_DAEMON = 3  # the facility
_SEVERITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_HEADER = frozenset({"event", "level", "timestamp", "exception"})  # fields that are not structured data
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")
_NOT_IN_NAMES = re.compile(r'[^\x21-\x7e]|[=\]"]')
_ESCAPED = re.compile(r'(["\\\]])')


def frame(event: Mapping[str, Any], *, host: str, pid: int) -> bytes:
    """Return an event, as it stands after the redactor, as one frame: its length, a space, the message."""
    said = message(event, host=host, pid=pid)
    return b"%d %s" % (len(said), said)


def message(event: Mapping[str, Any], *, host: str, pid: int) -> bytes:
    """Return an event as a message; what a receiver need not take is cut off its text."""
    short = {
        k: text for k, v in event.items() if k not in _HEADER and len(text := _text(v)) <= _LONGEST_VALUE
    }
    priority = _DAEMON * 8 + _SEVERITY.get(str(event.get("level")), 6)
    header = " ".join(
        (
            f"<{priority}>1",
            _printable(event.get("timestamp"), 32),
            _printable(host, 255),
            "certfan",
            str(pid),
            _printable(event.get("event"), 32),
        )
    )
    data = f"{header} {_structured(short, MOST_BYTES // 2)} ".encode()
    text = "\n".join(_lines(event, short.keys()))
    body = text.encode() if text.isascii() else b"\xef\xbb\xbf" + text.encode()
    room = MOST_BYTES - len(data)
    return data + (body if len(body) <= room else body[:room].decode(errors="ignore").encode())


def _lines(event: Mapping[str, Any], short: Any) -> Iterator[str]:
    """Yield the text: what happened to what, then whatever is too long to be structured data."""
    yield " ".join(str(event[key]) for key in ("event", "subject", "detail") if event.get(key))
    for key, value in event.items():
        if key not in _HEADER and key not in short and key != "detail":
            yield from (
                f"{key}: {_text(one)}" for one in (value if isinstance(value, list | tuple) else (value,))
            )
    if event.get("exception"):
        yield str(event["exception"])


def _structured(fields: Mapping[str, str], room: int) -> str:
    """Return the fields as one element of structured data, those that fit."""
    told = [f"[{SD_ID}"]
    for key, value in fields.items():
        escaped = _ESCAPED.sub(r"\\\1", value)
        one = f' {_NOT_IN_NAMES.sub("_", key)[:32]}="{escaped}"'
        room -= len(one.encode())
        if room >= 0:
            told.append(one)
    return "".join(told) + "]"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _printable(value: Any, most: int) -> str:
    """Return a header's field; RFC 5424 knows printable ASCII only, and a dash for nothing."""
    return _NOT_PRINTABLE.sub("_", str(value or ""))[:most] or "-"
