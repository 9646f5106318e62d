"""Contexts and messages."""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import VECTOR

revision = "4c1d8a7e2b90"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("create extension if not exists vector")
    op.create_table(
        "contexts",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("message_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("latest_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("parent_id", sa.Uuid()),
        sa.Column("fork_version", sa.BigInteger()),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="contexts_pkey"),
        sa.ForeignKeyConstraint(["parent_id"], ["contexts.id"], name="contexts_parent_id_contexts_id_fk"),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("context_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("tool_call_id", sa.Text()),
        sa.Column("tool_name", sa.Text()),
        sa.Column("token_count", sa.Integer()),
        sa.Column("model", sa.Text()),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("embedding", VECTOR(1536)),
        sa.PrimaryKeyConstraint("id", name="messages_pkey"),
        sa.ForeignKeyConstraint(["context_id"], ["contexts.id"], name="messages_context_id_contexts_id_fk"),
        sa.UniqueConstraint("context_id", "version", name="messages_context_version_unique"),
    )
    op.create_index("messages_context_version_idx", "messages", ["context_id", "version"])
    op.create_index("messages_deleted_at_idx", "messages", ["deleted_at"])


def downgrade() -> None:
    # The extension stays: other tables may use it.
    op.drop_table("messages")
    op.drop_table("contexts")
