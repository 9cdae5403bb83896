"""Prepares the model and the questions of the shipped recipes demo, sums and smollm2, one file per recipe."""
