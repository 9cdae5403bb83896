"""What the kernels should cost: instructions read from machine code, and a model of the time they take."""
