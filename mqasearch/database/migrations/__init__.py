"""Alembic's environment; :mod:`mqasearch.database.schema` drives it."""
