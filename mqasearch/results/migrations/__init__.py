"""Alembic's environment; :mod:`mqasearch.results.schema` drives it."""
