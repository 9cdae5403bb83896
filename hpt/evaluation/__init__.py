"""How often a model is right: avg@n, pass@k, and two evaluations compared."""
