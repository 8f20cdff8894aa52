"""Schema versions; loaded when there is something to migrate only. Each file in versions/ is one step up."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def upgrade(db: Connection, revision: str) -> None:
    """Bring the schema up to `revision` inside the transaction that `db` is in."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = db
    command.upgrade(config, revision)
