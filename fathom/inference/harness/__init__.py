"""The tasks of lm-evaluation-harness: Fathom's models as models of it, and runs of its tasks; an optional package."""
