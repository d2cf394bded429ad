"""The tables of claims on scores, and of the workers that make the claims."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add two tables of temporary rows; scores stay as they are."""
    op.create_table(
        "mqasearch_claim",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_mqasearch_claim"),
    )
    op.create_table(
        "mqasearch_worker",
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("study", sa.String(512), nullable=True),
        sa.Column("trial", sa.Integer, nullable=True),
        sa.Column("trials_done", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("worker", name="pk_mqasearch_worker"),
    )
