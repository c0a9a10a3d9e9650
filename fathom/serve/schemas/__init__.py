"""The bodies of requests and answers, as OpenAI's interface has them and with what goes beyond it."""
