"""What a newcomer types, from first to last command: each once, in a terminal, as documented."""
