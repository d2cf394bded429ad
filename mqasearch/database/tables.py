"""The tables of mqasearch. Their names begin with ``mqasearch_``; all others are Optuna's."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Double,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PREFIX = "mqasearch_"

DIGEST_LENGTH = 64
"""Number of hexadecimal digits of a SHA-256."""


class Base(DeclarativeBase):
    """Base of all tables. It names constraints, as a migration can only drop those with a name."""

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

    Each field of the key is a column, for people who query the table by hand. Programs find a score
    by the digest of its key.
    """

    __tablename__ = "mqasearch_score"

    score_id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), unique=True)

    model: Mapped[str] = mapped_column(String(255))
    dtype: Mapped[str] = mapped_column(String(32))
    merge: Mapped[str] = mapped_column(Text)
    calibration: Mapped[str] = mapped_column(String(255))
    kv_heads: Mapped[str] = mapped_column(Text)
    """KV heads per layer, layer 0 first, separated by commas."""
    task: Mapped[str] = mapped_column(String(255))
    task_version: Mapped[str] = mapped_column(String(64))
    num_fewshot: Mapped[int]
    documents: Mapped[str] = mapped_column(String(255))
    seed: Mapped[int]
    lm_eval: Mapped[str] = mapped_column(String(64))
    tokenizer: Mapped[str] = mapped_column(String(DIGEST_LENGTH), server_default="")
    code: Mapped[str] = mapped_column(String(DIGEST_LENGTH), server_default="")
    """``tokenizer`` and ``code`` are empty in rows of versions that did not write them. No key of
    this version is equal to the key of such a row."""

    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    stderr: Mapped[dict[str, float | None]] = mapped_column(JSON)
    """Null if there is none: a single document has no standard error."""
    n_docs: Mapped[int]
    seconds: Mapped[float]
    per_document: Mapped[bytes] = mapped_column(LargeBinary)
    """zlib of JSON: metric → list of one value per document."""
    created_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())


class ClaimRow(Base):
    """A worker's claim that it is computing a score; valid until it expires."""

    __tablename__ = "mqasearch_claim"

    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), primary_key=True)
    worker: Mapped[str] = mapped_column(String(255))
    expires_at: Mapped[float]
    """Seconds since 1970, on the database's clock."""


class WorkerRow(Base):
    """A worker that is at work, or was so recently."""

    __tablename__ = "mqasearch_worker"

    worker: Mapped[str] = mapped_column(String(255), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(64))
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    study: Mapped[str | None] = mapped_column(String(512))
    """The Optuna study of the trial that the worker runs now; null between trials."""
    trial: Mapped[int | None]
    """The number of that trial."""
    trials_done: Mapped[int]
    started_at: Mapped[float]
    seen_at: Mapped[float]
    """``started_at`` and ``seen_at`` are in seconds since 1970, on the database's clock."""


class TaskRow(Base):
    """A mask of a study: one that is to be scored, is being scored, or has a result.

    The constraints guarantee two things, whatever workers do at the same time: no mask is twice in
    a study, and no two tasks of a study have the same number.
    """

    __tablename__ = "mqasearch_task"
    __table_args__ = (
        UniqueConstraint("study_id", "mask", name="uq_mqasearch_task_study_id_mask"),
        UniqueConstraint("study_id", "number", name="uq_mqasearch_task_study_id_number"),
    )

    task_id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int]
    """Optuna's number of the study."""
    number: Mapped[int]
    """The place in the order in which the study's masks were proposed, from 0."""
    mask: Mapped[str] = mapped_column(String(512))
    """The mask as a string of digits, one level for each layer."""
    name: Mapped[str | None] = mapped_column(String(255))
    """The name of a mask that was enqueued by name; null for other masks."""
    state: Mapped[str] = mapped_column(String(16))
    """``queued``, ``leased``, ``complete``, ``pruned`` or ``invalid``."""
    worker: Mapped[str | None] = mapped_column(String(255))
    """The worker that has the lease, or had the last one."""
    lease_until: Mapped[float | None]
    """End of the lease in seconds since 1970, on the database's clock."""
    deaths: Mapped[int] = mapped_column(server_default="0")
    """Number of workers that died while they had the lease."""
    out_of_memory: Mapped[int] = mapped_column(server_default="0")
    """Number of attempts that ran out of memory."""
    value: Mapped[float | None]
    given_up: Mapped[int | None]
    """Number of documents after which the mask lost a race; null if it lost none."""
    fault: Mapped[str | None] = mapped_column(Text)
    """Why an ``invalid`` mask has no value."""
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """What the trial found, as Optuna's study stores it."""
    trial_id: Mapped[int | None]
    """Optuna's number of the trial that records the task."""
    recorded: Mapped[bool] = mapped_column(server_default=false())
    """Whether that trial is finished."""
