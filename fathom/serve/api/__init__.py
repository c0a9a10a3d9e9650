"""The routes that generate or tokenize: from a request's body to what the engine runs."""
