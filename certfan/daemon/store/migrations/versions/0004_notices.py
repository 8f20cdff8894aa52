"""What was told of problems, and what is to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "notices",
        sa.Column("channel", sa.String(), autoincrement=False, nullable=False),
        sa.Column("subject", sa.String(), autoincrement=False, nullable=False),
        sa.Column("code", sa.String(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime()),
        sa.PrimaryKeyConstraint("channel", "subject", "code", name=op.f("pk_notices")),
    )
    op.create_table(
        "outbox",
        sa.Column("channel", sa.String(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("message", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.DateTime(), nullable=False),
        sa.Column("problem", sa.JSON()),
        sa.PrimaryKeyConstraint("channel", name=op.f("pk_outbox")),
    )
