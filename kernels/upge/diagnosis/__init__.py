"""Whether the kernels are right and how fast they are, on the machine at hand."""
