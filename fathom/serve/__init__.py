"""HTTP server for OpenAI's and Anthropic's clients: text, tools, embeddings, several models, metrics, a web page."""
