"""The queue: masks that are to be scored, are being scored, or have a result."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add one table, which ``schema.upgrade`` fills from the trials of existing studies."""
    op.create_table(
        "mqasearch_task",
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("mask", sa.String(512), nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(255)),
        sa.Column("lease_until", sa.Double()),
        sa.Column("deaths", sa.Integer(), server_default="0", nullable=False),
        sa.Column("out_of_memory", sa.Integer(), server_default="0", nullable=False),
        sa.Column("value", sa.Double()),
        sa.Column("given_up", sa.Integer()),
        sa.Column("fault", sa.Text()),
        sa.Column("facts", sa.JSON()),
        sa.Column("trial_id", sa.Integer()),
        sa.Column("recorded", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_mqasearch_task")),
        sa.UniqueConstraint("study_id", "mask", name="uq_mqasearch_task_study_id_mask"),
        sa.UniqueConstraint("study_id", "number", name="uq_mqasearch_task_study_id_number"),
    )
