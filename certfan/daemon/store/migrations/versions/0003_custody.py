"""Keys that a consumer makes and alone has: whose they are, and what it was asked to sign."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add columns that the old rows can do without, and a new table."""
    op.add_column("agent_boots", sa.Column("install", sa.String(), server_default="", nullable=False))
    op.add_column("generations", sa.Column("holder", sa.String(), server_default="", nullable=False))
    op.create_table(
        "signing_requests",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("identifiers", sa.JSON(), nullable=False),
        sa.Column("key_type", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("asked_at", sa.DateTime(), nullable=False),
        sa.Column("csr", sa.LargeBinary()),
        sa.Column("problem", sa.JSON()),
        sa.PrimaryKeyConstraint("certificate", name=op.f("pk_signing_requests")),
    )
