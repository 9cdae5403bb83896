"""Questions with their answers and demonstrations, and how they become tokens."""
