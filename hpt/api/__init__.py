"""The Python API: what the commands do, as functions. Nothing heavy is imported before a function needs it."""
