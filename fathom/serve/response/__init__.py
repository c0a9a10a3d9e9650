"""Answers on their way to the client: tokens in, JSON bodies or server-sent events out."""
