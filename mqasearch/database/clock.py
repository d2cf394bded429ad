"""The database's clock, which times leases and heartbeats: the workers' own clocks may differ."""

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class seconds_now(FunctionElement[float]):
    """Seconds since 1970, at the time when the statement runs."""

    type = Double()
    inherit_cache = True


class seconds_started(FunctionElement[float]):
    """When the server started, in seconds since 1970; 0 for databases without a server."""

    type = Double()
    inherit_cache = True


@compiles(seconds_now, "postgresql")
def _(element: seconds_now, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(seconds_now, "sqlite")
def _(element: seconds_now, compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(seconds_started, "postgresql")
def _(element: seconds_started, compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(extract(epoch FROM pg_postmaster_start_time()) AS DOUBLE PRECISION)"


@compiles(seconds_started)
def _(element: seconds_started, compiler: SQLCompiler, **_: Any) -> str:
    return "0.0"
