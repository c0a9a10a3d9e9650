"""Checkpoints: our own store, and the published forms of each family."""
