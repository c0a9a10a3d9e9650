"""From sources on the network or on disk to training batches: fetch, extract, clean, deduplicate, pack."""
