"""Training steps with random weights and no data, for `python -m bench train` and `python -m bench memory`."""
