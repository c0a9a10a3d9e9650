"""Generation from the caches: sampling, batching and streaming, in token ids."""
