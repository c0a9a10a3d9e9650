"""One module for each kind of input; ``TARGETS`` of a module are the classes that ``tests.fuzz.driver`` runs."""
