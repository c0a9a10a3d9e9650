"""HTTP server for OpenAI's and Anthropic's clients over one engine a model: tool calls, embeddings, metrics, a web page."""
