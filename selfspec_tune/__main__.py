"""``python -m selfspec_tune``: the command line."""

from selfspec_tune.cli.app import main

main()
