"""One HTTP answer of the faulty authority as a value, and problem documents (RFC 8555 section 6.7)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

PREFIX = "urn:ietf:params:acme:error:"
PROBLEM = "application/problem+json"
CHAIN = "application/pem-certificate-chain"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and headers; a header may stand in it more than once."""

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def adding(self, **headers: str | None) -> Answer:
        """Return it with more headers; `Retry_After` is `Retry-After`, None is left out."""
        more = tuple((name.replace("_", "-"), value) for name, value in headers.items() if value is not None)
        return replace(self, headers=(*self.headers, *more))


def json_answer(fields: Mapping[str, Any], status: int = 200) -> Answer:
    """Return an object, without the fields that are None."""
    kept = {name: value for name, value in fields.items() if value is not None}
    return Answer(status, json.dumps(kept).encode(), "application/json")


class Refused(Exception):
    """What a request is refused with."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body.decode())
        self.answer = answer


def document(kind: str, detail: str, *, subproblems: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a problem document; `kind` is what follows the common prefix."""
    nested = list(subproblems)
    return {"type": PREFIX + kind, "detail": detail, **({"subproblems": nested} if nested else {})}


def subproblem(kind: str, detail: str, name: str) -> dict[str, Any]:
    """Return a problem of one identifier."""
    return {**document(kind, detail), "identifier": {"type": "dns", "value": name}}


def problem(
    kind: str,
    status: int = 400,
    detail: str = "told so by the test",
    *,
    retry_after: int | str | None = None,
    subproblems: Sequence[Mapping[str, Any]] = (),
    **fields: Any,
) -> Answer:
    """Return an answer that is a problem document; `retry_after` in seconds or as an HTTP date."""
    body = {**document(kind, detail, subproblems=subproblems), "status": status, **fields}
    answer = Answer(status, json.dumps(body).encode(), PROBLEM)
    return answer.adding(Retry_After=None if retry_after is None else str(retry_after))


def refused(kind: str, status: int = 400, detail: str = "", **fields: Any) -> Refused:
    """Return the exception for a problem."""
    return Refused(problem(kind, status, detail or kind, **fields))
