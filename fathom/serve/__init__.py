"""The OpenAI-compatible HTTP server: text and messages in, text and calls out, over one engine."""
