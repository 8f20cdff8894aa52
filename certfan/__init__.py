"""certfan: one daemon gets every certificate; every endpoint provably serves it by its deadline."""

from datetime import UTC, datetime

__version__ = "0.1.0"
BUILT_AT = datetime(2026, 11, 1, tzinfo=UTC)  # not after the release: a clock that shows less is wrong
