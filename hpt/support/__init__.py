"""Errors, seeds, processes and other things that every room may use."""
