"""Request and response bodies of OpenAI's API, with extensions."""
