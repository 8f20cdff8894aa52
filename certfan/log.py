"""Logs as facts with names: set-up, and the net that keeps key material out.

An event is a constant noun.participle (`generation.published`); details are fields. JSON lines when stderr is
no terminal, readable columns when it is; colour obeys NO_COLOR. Where stderr is systemd's journal, each line is
handed over with its facts as fields of their own (systemd.py), to be asked for:
`journalctl CERTFAN_EVENT=generation.published`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import datetime
from typing import Any

import structlog

from certfan import systemd

REDACTED = "[key material removed]"

# A PEM private key of any flavour, a JWK's private members, and PEM cut short: all of it goes.
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_JWK = re.compile(r"""(["'](?:d|p|q|dp|dq|qi)["']\s*:\s*["'])[A-Za-z0-9_-]{16,}(["'])""")
# Base64 of the PKCS#8 algorithm identifiers (RSA, P-256, P-384, Ed25519, X25519) as it stands without armour.
_PKCS8 = re.compile(
    r"\bM(?:II[A-Za-z0-9+/]{2,4}IBADANBgkq|IGHAgEAMBMGByqGSM49|IG2AgEAMBAGByqGSM49|C4CAQAwBQYDK2V)[A-Za-z0-9+/=\s]+"
)
# Whatever holds a key has one of these in it, in JSON or in a text of ours: to look for them takes a tenth of the time. A JWK
# that is private has a `d`, whose quotes are escaped inside of a string.
_ENCODED = ("PRIVATE KEY", "IBADANBgkq", "GByqGSM49", "C4CAQAwBQYDK2V")
_SIGNS = (*(sign.encode() for sign in _ENCODED), b'"d"', b"'d'", b'\\"d\\"')
_SIGNS_IN_TEXT = (*_ENCODED, '"', "'")
_NOW = structlog.processors.TimeStamper(fmt="iso", utc=True)
_ENCODER = json.JSONEncoder(default=str)
_SECRET_FIELDS = frozenset({"key_pem", "private_key", "privkey", "token", "password", "secret"})


def redact(value: Any) -> Any:
    """Return `value` with every trace of a private key replaced; containers are copied, not changed.

    A net, not a plan: callers never pass key material in the first place.
    """
    match value:
        case str():
            return _without_keys(value) if _may_hold_a_key(value) else value
        case None | bool() | int() | float():
            return value
        case bytes() | bytearray():
            return redact(bytes(value).decode("latin-1"))
        case dict() | Mapping():  # of these a dict is known at once
            return {k: REDACTED if k in _SECRET_FIELDS else redact(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [redact(v) for v in value]
        case _:
            return redact(str(value))


def _may_hold_a_key(text: str) -> bool:
    """Whether one of the three could match, as each has something of this in it: a quarter of their time."""
    for sign in _SIGNS_IN_TEXT:  # noqa: SIM110 - any() takes three times as long
        if sign in text:
            return True
    return False


def _without_keys(text: str) -> str:
    return _JWK.sub(_without_member, _PKCS8.sub(REDACTED, _PEM.sub(REDACTED, text)))


def _without_member(found: re.Match[str]) -> str:
    return f"{found[1]}{REDACTED}{found[2]}"


def redact_json(body: bytes) -> bytes:
    """Return JSON with every trace of a private key replaced; what holds none comes back as it is, fast."""
    if any(sign in body for sign in _SIGNS):
        return json.dumps(redact(json.loads(body))).encode()
    return body


def refuse_key_material(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Structlog processor: the last before rendering, so tracebacks pass through it too."""
    return {k: REDACTED if k in _SECRET_FIELDS else redact(v) for k, v in event.items()}


def set_up(
    *, level: str = "info", stream: Any = None, remote: Callable[[Mapping[str, Any]], None] | None = None
) -> None:
    """Configure structlog and cap the loggers of libraries that would say too much. Repeatable.

    `remote` is handed every line too, as the redactor leaves it.
    """
    out = stream or sys.stderr
    pretty = out.isatty()
    renderer: Any = _as_json
    if pretty:
        renderer = structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
    writer = structlog.WriteLogger(out)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _stamped,
            structlog.processors.format_exc_info,
            refuse_key_material,
            *([_hand_over(remote)] if remote else []),
            *([_to_journal(renderer)] if stream is None and systemd.logs_to_journal() else [renderer]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)
    # acme logs whole JWS bodies at DEBUG; aiohttp's access log would double every challenge.
    for name in ("acme", "josepy", "urllib3", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _Libraries(logging.Handler):
    """Lets what libraries warn of pass the same processors, the redactor among them, and leave by the same ways."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(room=record.name)
        try:
            detail = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit its text
            detail = str(record.msg)
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING  # some have their own
        logger.log(level, "library.warned", detail=detail, exc_info=record.exc_info)


def _stamped(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event if "timestamp" in event else _NOW(logger, method, event)


def timestamp(at: datetime) -> str:
    """Return what an event that is told late has as its field `timestamp`; `at` is aware UTC."""
    return at.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return _ENCODER.encode(event)


def _hand_over(remote: Callable[[Mapping[str, Any]], None]) -> Any:
    def processor(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        remote(event)
        return event

    return processor


def _to_journal(renderer: Any) -> Any:
    """Return the last processor where stderr is the journal: it hands the line over, or leaves it to stderr."""

    def hand_over(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        fields = {key: value for key, value in event.items() if key != "timestamp"}
        line = str(renderer(logger, method, event))
        if systemd.tell_journal(line, method, fields):
            raise structlog.DropEvent
        return line

    return hand_over


def get(name: str) -> Any:
    """Return the logger of a room; `name` becomes the field `room`. It may be taken before `set_up`."""
    # Not `.bind()`: that would settle on the processors of this moment, without the one that refuses key material.
    return structlog.get_logger(room=name)
