"""The training loop: Algorithm 1 of the paper, and the run around it."""
