"""`python -m draftmill` is the `draftmill` command."""

from .producer.cli import main

main()
