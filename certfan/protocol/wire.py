"""The form of everything that is said on the channel: strict JSON, and how it is read.

A field that we do not know is a newer release's: it is dropped, and named to whoever decodes. What must never come in:
which messages there are (messages.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from certfan.errors import MessageInvalid


class Message(BaseModel):
    """What every message has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def encode(self) -> bytes:
        """Return the message as JSON."""
        return self.model_dump_json().encode()


M = TypeVar("M", bound=Message)


def _forget(_: str) -> None:
    pass


def decode(kind: type[M], data: bytes, unknown: Callable[[str], None] = _forget) -> M:
    """Parse a message without the fields that we do not know; `unknown` is told each of them.

    Raises:
        MessageInvalid: names the first field that is wrong; never holds what was sent.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
    surplus = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]
    wrong = next((problem for problem in problems if problem["type"] != "extra_forbidden"), None)
    if wrong is not None:
        place = ".".join(str(step) for step in wrong["loc"]) or "the whole"
        raise MessageInvalid(f"{kind.__name__} is malformed: {place}: {wrong['type']}")
    found = kind.model_validate_json(_without(data, surplus, kind.__name__))
    for loc in surplus:
        unknown(".".join([kind.__name__, *(step for step in loc if isinstance(step, str))]))
    return found


def _without(data: bytes, places: Iterable[tuple[int | str, ...]], name: str) -> bytes:
    try:
        document: Any = json.loads(data)
        for *way, last in places:
            target = document
            for step in way:
                target = target[step]
            target.pop(last, None)
    except (ValueError, LookupError, TypeError):
        # Python reads JSON otherwise than pydantic: numbers of very many digits, the same key twice.
        raise MessageInvalid(f"{name} is malformed: the whole: json_invalid") from None
    return json.dumps(document).encode()
