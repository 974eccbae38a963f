"""Deciding which layers are updated and how many channels in each, under a memory budget."""
