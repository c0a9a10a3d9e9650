"""A recipe as named, resumable steps, and its report."""
