"""Rollouts by vLLM: in the trainer's process, or by a server."""
