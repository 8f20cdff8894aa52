"""Tokens that let read the status from another machine: how one is made, and what the config holds of it."""

from __future__ import annotations

import hashlib
import secrets


def make_token() -> str:
    """Return a new token of 256 random bits."""
    return f"certfan_{secrets.token_urlsafe(32)}"


def hash_of(token: str) -> str:
    """Return what the config holds of a token. So many random bits need no slow hash."""
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
