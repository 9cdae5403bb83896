"""Whole training steps inside other trainers, as they are and with the loss of upge, and hpt's own."""
