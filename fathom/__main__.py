"""``python -m fathom``: the same as the ``fathom`` command."""

from __future__ import annotations

from fathom.cli.main import main

if __name__ == "__main__":
    main()
