"""What ``fathom doctor`` looks at. Nothing here imports torch or an extra: that is done in processes of its own."""
