"""The paper's comparison at the scale of a CPU, for `python -m bench reproduce`."""
