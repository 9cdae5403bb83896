"""The stages of `python -m bench gpu`, and its report."""
