"""Alembic's environment; :mod:`mqasearch.database.schema` runs it."""
