"""Feed damaged and hostile inputs to whatever reads what strangers hand over.

    python -m tests.fuzz                                        every target, a minute each
    python -m tests.fuzz --target gguf --seconds 300 --seed 7   one of them
    python -m tests.fuzz --target gguf --replay FILE            one finding again

A target is a class that derives from ``driver.Target``; every module of ``tests/fuzz/targets`` lists its classes in
``TARGETS``, and no other place needs to know them. It makes an input from a random generator and checks one::

    class Recipes(Target):
        name = "recipes"

        def make(self, rng: random.Random) -> bytes:
            return damage(rng.choice(self.known), rng)

        def check(self, data: bytes) -> None:
            with self.tolerated():              # a FathomError of one line that ends in a remedy is no finding
                parse_recipe(data)

``check`` returns, or raises on a finding: any exception is one, and so are an input that takes longer than ``seconds``,
memory beyond ``memory_bytes`` and the end of the process. What is needed meanwhile (a folder, a server) is made in
``start``, where ``self.folder`` is an empty directory, and closed in ``stop``; ``start`` runs once before any input and
imports whatever ``check`` needs. ``test_targets_security.py`` runs ``short_executions`` inputs of every target in the
normal tests. Findings lie in ``runs/fuzz/TARGET`` as soon as they are made: the input, and beside it the report with
the command to repeat it. Ctrl-C ends a run after its input; the status is 1 where there is a finding.
"""
