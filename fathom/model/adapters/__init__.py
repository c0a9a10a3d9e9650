"""Low-rank adapters (LoRA) of a decoder's linear layers and experts."""
