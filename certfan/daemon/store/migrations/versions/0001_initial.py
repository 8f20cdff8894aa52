"""The tables as the first release had them. Never edited after a release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "accounts",
        sa.Column("authority", sa.String(), autoincrement=False, nullable=False),
        sa.Column("directory", sa.String(), autoincrement=False, nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("thumbprint", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("authority", "directory", name=op.f("pk_accounts")),
    )
    op.create_table(
        "agent_boots",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("consumer", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("heard_at", sa.DateTime(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_agent_boots")),
        sa.UniqueConstraint("consumer", "boot_id", name=op.f("uq_agent_boots_consumer_boot_id")),
    )
    op.create_table(
        "asked",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", name=op.f("pk_asked")),
    )
    op.create_table(
        "assignments",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("offered_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", "consumer", name=op.f("pk_assignments")),
    )
    op.create_table(
        "attempts",
        sa.Column("subject", sa.String(), autoincrement=False, nullable=False),
        sa.Column("problem", sa.JSON(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("not_before", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_attempts")),
    )
    op.create_table(
        "configs",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("in_force_since", sa.DateTime(), nullable=False),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("problems_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_configs")),
    )
    op.create_table(
        "consumers",
        sa.Column("name", sa.String(), autoincrement=False, nullable=False),
        sa.Column("added_at", sa.DateTime(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_consumers")),
    )
    op.create_table(
        "definitions",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("changed_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", name=op.f("pk_definitions")),
    )
    op.create_table(
        "deployments",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("problem", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("certificate", "consumer", "generation", name=op.f("pk_deployments")),
    )
    op.create_index(op.f("ix_deployments_consumer"), "deployments", ["consumer"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_table(
        "forgotten",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("certificate", name=op.f("pk_forgotten")),
    )
    op.create_table(
        "forgotten_consumers",
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("asked_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", name=op.f("pk_forgotten_consumers")),
    )
    op.create_table(
        "generations",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("identifiers", sa.JSON(), nullable=False),
        sa.Column("key_type", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("not_before", sa.DateTime(), nullable=False),
        sa.Column("not_after", sa.DateTime(), nullable=False),
        sa.Column("issued_at", sa.DateTime(), nullable=False),
        sa.Column("copy_of", sa.Integer(), nullable=True),
        sa.Column("revoked_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("certificate", "number", name=op.f("pk_generations")),
    )
    op.create_table(
        "issuances",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("certificate", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("identifiers", sa.JSON(), nullable=False),
        sa.Column("begun_at", sa.DateTime(), nullable=False),
        sa.Column("order_url", sa.String(), nullable=True),
        sa.Column("closed_at", sa.DateTime(), nullable=True),
        sa.Column("problem", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_issuances")),
    )
    op.create_index(op.f("ix_issuances_certificate"), "issuances", ["certificate"], unique=False)
    op.create_table(
        "orders",
        sa.Column("url", sa.String(), autoincrement=False, nullable=False),
        sa.Column("certificate", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("url", name=op.f("pk_orders")),
    )
    op.create_table(
        "proofs",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("service", sa.String(), autoincrement=False, nullable=False),
        sa.Column("protocol", sa.String(), autoincrement=False, nullable=False),
        sa.Column("address", sa.String(), autoincrement=False, nullable=False),
        sa.Column("port", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("server_name", sa.String(), autoincrement=False, nullable=False),
        sa.Column("health", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("not_after", sa.DateTime(), nullable=True),
        sa.Column("not_before", sa.DateTime(), nullable=True),
        sa.Column("placeholder", sa.Boolean(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("heard_at", sa.DateTime(), nullable=False),
        sa.Column("since", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint(
            "certificate",
            "consumer",
            "service",
            "protocol",
            "address",
            "port",
            "server_name",
            name=op.f("pk_proofs"),
        ),
    )
    op.create_index(op.f("ix_proofs_consumer"), "proofs", ["consumer"], unique=False)
    op.create_table(
        "published",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", "consumer", "generation", name=op.f("pk_published")),
    )
    op.create_table(
        "renewal_infos",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("window_start", sa.DateTime(), nullable=False),
        sa.Column("window_end", sa.DateTime(), nullable=False),
        sa.Column("chosen", sa.DateTime(), nullable=False),
        sa.Column("ask_again_at", sa.DateTime(), nullable=False),
        sa.Column("explanation_url", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", name=op.f("pk_renewal_infos")),
    )
    op.create_table(
        "revisions",
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", name=op.f("pk_revisions")),
    )
    op.create_table(
        "rollbacks",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", name=op.f("pk_rollbacks")),
    )
    op.create_table(
        "urgencies",
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.String(), autoincrement=False, nullable=False),
        sa.Column("urgency", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("certificate", "consumer", "endpoint", name=op.f("pk_urgencies")),
    )
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.String(), nullable=False),
        sa.Column("remembered_until", sa.DateTime(), nullable=False),
        sa.Column("began_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_runs")),
    )
    op.create_table(
        "tokens",
        sa.Column("token", sa.String(), autoincrement=False, nullable=False),
        sa.Column("certificate", sa.String(), autoincrement=False, nullable=False),
        sa.Column("key_authorization", sa.String(), nullable=False),
        sa.Column("identifier", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("token", "certificate", name=op.f("pk_tokens")),
    )
    op.create_table(
        "answered",
        sa.Column("issuance", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("challenge_url", sa.String(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["issuance"], ["issuances.id"], name=op.f("fk_answered_issuance")),
        sa.PrimaryKeyConstraint("issuance", "challenge_url", name=op.f("pk_answered")),
    )
    op.create_table(
        "enrolments",
        sa.Column("token_hash", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("opened_at", sa.DateTime(), nullable=False),
        sa.Column("expires", sa.DateTime(), nullable=False),
        sa.Column("spent_by", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["consumer"], ["consumers.name"], name=op.f("fk_enrolments_consumer")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_enrolments")),
    )
    op.create_table(
        "identities",
        sa.Column("serial", sa.String(), autoincrement=False, nullable=False),
        sa.Column("consumer", sa.String(), nullable=False),
        sa.Column("spki", sa.String(), nullable=False),
        sa.Column("certificate_pem", sa.LargeBinary(), nullable=False),
        sa.Column("not_before", sa.DateTime(), nullable=False),
        sa.Column("not_after", sa.DateTime(), nullable=False),
        sa.Column("used_at", sa.DateTime(), nullable=True),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["consumer"], ["consumers.name"], name=op.f("fk_identities_consumer")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_identities")),
    )
    op.create_index(op.f("ix_identities_consumer"), "identities", ["consumer"], unique=False)
