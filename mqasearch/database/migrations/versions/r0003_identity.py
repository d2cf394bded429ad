"""Two more columns of a score's key: the tokenizer, and the code that computed the score."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add two columns, which are empty in existing scores.

    These scores stay, but no key of this version is equal to theirs. The database sets the default,
    because workers of the older version go on inserting rows.
    """
    for name in ("tokenizer", "code"):
        column = sa.Column(name, sa.String(64), server_default="", nullable=False)
        op.add_column("mqasearch_score", column)
