"""A recipe as named, resumable steps, its report, and the handle behind ``fathom.load``."""
