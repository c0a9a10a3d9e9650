"""OpenAI-compatible HTTP server over one engine: chat, completions, tool calls, metrics and a web page."""
