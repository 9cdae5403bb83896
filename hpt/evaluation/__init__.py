"""Evaluates models on questions with known answers: avg@k, pass@k, and two evaluations compared."""
