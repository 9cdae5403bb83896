"""The figures of the comparison, one file each."""
