"""One file per command. Each has `main(arguments) -> exit status`; its docstring's first line is shown by `--help`."""
