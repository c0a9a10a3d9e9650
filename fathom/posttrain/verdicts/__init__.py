"""Tests in one process, the program they judge in another, and calls with plain values between them."""
