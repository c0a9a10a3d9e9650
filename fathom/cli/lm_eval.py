"""``python -m fathom.cli.lm_eval``: lm-evaluation-harness's own command line, with ``--model fathom``."""

from __future__ import annotations

from fathom.cli.main import guarded


def main() -> None:
    """Run the harness's command line; Fathom's models are ``--model fathom --model_args pretrained=MODEL``."""
    from fathom.inference.harness.runs import require_harness

    require_harness()
    from lm_eval.__main__ import cli_evaluate

    import fathom.inference.harness.model  # noqa: F401  registers the model

    cli_evaluate()


if __name__ == "__main__":
    guarded(main)
