"""The commands, a few a file: `add_x(parser)` takes a parser and gives what runs it."""
