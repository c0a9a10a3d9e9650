"""Folders as people have them: which files are text or data, what each holds, and what was left out."""
