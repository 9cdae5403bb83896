"""The commands of `python -m upge`, one per file."""
