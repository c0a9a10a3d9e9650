"""Recipes written for a user's data, model and machine: commented TOML, sized so that a run ends in a given time."""
