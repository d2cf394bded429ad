"""The tables of mqasearch. Optuna owns the plain names; ours begin with ``mqasearch_``."""

from datetime import datetime

from sqlalchemy import JSON, DateTime, Double, LargeBinary, MetaData, String, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PREFIX = "mqasearch_"

DIGEST_LENGTH = 64
"""Hexadecimal digits of SHA-256."""


class Base(DeclarativeBase):
    """Constraints are named by rule, since a migration can only drop what has a name."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {float: Double}  # noqa: RUF012 - SQLAlchemy's declared form


class ScoreRow(Base):
    """One :class:`~mqasearch.score.Score` under its :class:`~mqasearch.score.ScoreKey`.

    Each field of the key is a column, for people who query the table by hand; the digest decides.
    """

    __tablename__ = "mqasearch_score"

    score_id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), unique=True)

    model: Mapped[str] = mapped_column(String(255))
    dtype: Mapped[str] = mapped_column(String(32))
    merge: Mapped[str] = mapped_column(Text)
    calibration: Mapped[str] = mapped_column(String(255))
    kv_heads: Mapped[str] = mapped_column(Text)
    """Heads per layer, layer 0 first, separated by commas."""
    task: Mapped[str] = mapped_column(String(255))
    task_version: Mapped[str] = mapped_column(String(64))
    num_fewshot: Mapped[int]
    documents: Mapped[str] = mapped_column(String(255))
    seed: Mapped[int]
    lm_eval: Mapped[str] = mapped_column(String(64))
    tokenizer: Mapped[str] = mapped_column(String(DIGEST_LENGTH), server_default="")
    code: Mapped[str] = mapped_column(String(DIGEST_LENGTH), server_default="")
    """Both empty in rows of versions that did not know them; no key is equal to theirs."""

    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    stderr: Mapped[dict[str, float | None]] = mapped_column(JSON)
    """Null where there is none: a single document has no standard error."""
    n_docs: Mapped[int]
    seconds: Mapped[float]
    per_document: Mapped[bytes] = mapped_column(LargeBinary)
    """zlib of JSON: metric → list of one value per document."""
    created_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())


class ClaimRow(Base):
    """A worker's word that it is working on a score; good until it expires."""

    __tablename__ = "mqasearch_claim"

    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), primary_key=True)
    worker: Mapped[str] = mapped_column(String(255))
    expires_at: Mapped[float]
    """Seconds since 1970, on the database's clock."""


class WorkerRow(Base):
    """A worker that is at work, or was lately."""

    __tablename__ = "mqasearch_worker"

    worker: Mapped[str] = mapped_column(String(255), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(64))
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    study: Mapped[str | None] = mapped_column(String(512))
    """The Optuna study of the trial in hand; null between trials."""
    trial: Mapped[int | None]
    """Its number."""
    trials_done: Mapped[int]
    started_at: Mapped[float]
    seen_at: Mapped[float]
    """Both in seconds since 1970, on the database's clock."""
