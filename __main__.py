"""`python -m draftmill` is the `draftmill` command."""

from .producer.cli.main import main

main()
