"""The command line. Heavy imports live inside the commands, so that ``--help`` is quick."""

from mqasearch.cli.app import main

__all__ = ["main"]
