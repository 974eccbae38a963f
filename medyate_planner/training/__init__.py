"""Executing a plan: memory-lean operators, the session, sampling, the training loop, and measurement."""
