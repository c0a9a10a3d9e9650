"""Native CPU kernels: a C library (``csrc/``) that ``build`` compiles at installation and ``library`` loads."""
