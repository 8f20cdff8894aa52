"""When consumers booted, and whether the boot before had an end."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add columns that the old rows can do without."""
    op.add_column("agent_boots", sa.Column("booted_at", sa.DateTime()))
    op.add_column("agent_boots", sa.Column("reset", sa.Boolean()))
