"""The paper: the gate, advantages, and token rows with their global normalisers."""
