"""Made-up runs of any size, to measure the report of them."""
