"""What the authority's side needs to survive everything: budgets, renewals, revocations, our own checks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns that the old rows can do without, and new tables."""
    op.add_column("consumers", sa.Column("sealing_key", sa.LargeBinary()))
    op.add_column("accounts", sa.Column("contact", sa.JSON()))
    op.add_column("runs", sa.Column("booted_for", sa.Integer()))
    op.add_column("issuances", sa.Column("replaces", sa.String()))
    op.add_column("issuances", sa.Column("exempt", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("generations", sa.Column("key", sa.String(), server_default="", nullable=False))
    op.add_column("attempts", sa.Column("since", sa.DateTime()))
    op.create_table(
        "revocations",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("at_once", sa.Boolean(), nullable=False),
        sa.Column("asked_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", "generation", name=op.f("pk_revocations")),
    )
    op.create_table(
        "spends",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("names", sa.JSON(), nullable=False),
        sa.Column("exempt", sa.Boolean(), nullable=False),
        sa.Column("same_set", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spends")),
    )
    op.create_index(op.f("ix_spends_at"), "spends", ["at"])
    op.create_table(
        "leftovers",
        sa.Column("order_url", sa.String(), autoincrement=False, nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("order_url", name=op.f("pk_leftovers")),
    )
    op.create_table(
        "checks",
        sa.Column("identifier", sa.String(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("problem", sa.JSON()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(), nullable=False),
        sa.Column("mended_at", sa.DateTime()),
        sa.PrimaryKeyConstraint("identifier", name=op.f("pk_checks")),
    )
    op.create_table(
        "rollovers",
        sa.Column("authority", sa.String(), autoincrement=False, nullable=False),
        sa.Column("asked_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("authority", name=op.f("pk_rollovers")),
    )
