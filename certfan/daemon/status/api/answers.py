"""An answer as the reading routes give it: JSON with a strong ETag, and nothing again to who has it already."""

from __future__ import annotations

import hashlib
from typing import Any

from aiohttp import ETag, web

from certfan.daemon.status.wire import encode

# May be kept, must be asked for again: an ETag is of use only so.
_JSON = "application/json; charset=utf-8"
CACHE = "private, no-cache"


def answer(request: web.Request, value: Any) -> web.Response:
    """Return a dataclass as JSON; one that was encoded already is its bytes."""
    return answer_bytes(request, value if isinstance(value, bytes) else encode(value), _JSON)


def answer_bytes(request: web.Request, body: bytes, content_type: str) -> web.Response:
    """Return a body with its ETag, or 304 when that is what the client has (RFC 9110 section 13.1.2)."""
    tag = ETag(hashlib.sha256(body).hexdigest()[:32])
    known = request.if_none_match
    if known is not None and any(one.value in {tag.value, "*"} for one in known):
        response = web.Response(status=304)
    else:
        response = web.Response(body=body, headers={"Content-Type": content_type})
    response.etag = tag
    response.headers["Cache-Control"] = CACHE
    return response
