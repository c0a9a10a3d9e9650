"""Tests in one process, the program they judge in another, and calls with plain values between them.

Both processes of every run import these modules, which therefore import ``typing`` for type checkers only: a tenth of
what a run takes before the program begins.
"""
