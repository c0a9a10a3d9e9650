"""The command line: one thin module per verb; the only reader of environment variables."""
