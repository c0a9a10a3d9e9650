"""Checkpoints: Fathom's own format, and Hugging Face and GGUF formats of each family."""
