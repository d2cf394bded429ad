"""``python -m mqasearch``."""

from mqasearch.cli import main

main()
