"""Optimizer engines: what turns gradients into updates, in one process or in several."""
