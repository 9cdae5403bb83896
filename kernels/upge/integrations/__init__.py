"""The loss inside other trainers: one module each, imported only by those who use that trainer."""
