"""What a score depends on besides: the tokenizer, and the code that computed it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Two columns, empty in the scores that are there: these stay, and no key is equal to theirs.

    With a default of the database, since workers of the older version go on inserting.
    """
    for name in ("tokenizer", "code"):
        column = sa.Column(name, sa.String(64), server_default="", nullable=False)
        op.add_column("mqasearch_score", column)
