"""One file per command: `add_arguments(parser)`, and what the command does."""
