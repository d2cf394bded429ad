"""The table of scores."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Add ``mqasearch_score`` as mqasearch 0.1 first made it."""
    op.create_table(
        "mqasearch_score",
        sa.Column("score_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("dtype", sa.String(32), nullable=False),
        sa.Column("merge", sa.Text, nullable=False),
        sa.Column("calibration", sa.String(255), nullable=False),
        sa.Column("kv_heads", sa.Text, nullable=False),
        sa.Column("task", sa.String(255), nullable=False),
        sa.Column("task_version", sa.String(64), nullable=False),
        sa.Column("num_fewshot", sa.Integer, nullable=False),
        sa.Column("documents", sa.String(255), nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("lm_eval", sa.String(64), nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("stderr", sa.JSON, nullable=False),
        sa.Column("n_docs", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("per_document", sa.LargeBinary(2**24 - 1), nullable=False),
        sa.Column("created_at", sa.DateTime, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("score_id", name="pk_mqasearch_score"),
        sa.UniqueConstraint("digest", name="uq_mqasearch_score_digest"),
    )
