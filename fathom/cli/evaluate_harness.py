"""``fathom evaluate --lm-eval``: tasks of lm-evaluation-harness, of one model or several."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import model_options, options
from fathom.cli.console import print_json
from fathom.cli.display import make_display
from fathom.cli.evaluate_options import interruption
from fathom.cli.terminal import FilteredConsole
from fathom.errors import SpecError
from fathom.files import json_text, write_text
from fathom.logs import listed

if TYPE_CHECKING:
    from fathom.inference.harness.runs import HarnessTasks, Results
    from fathom.inference.journal import Journal
    from fathom.inference.language_model import LanguageModel

HarnessNames = Annotated[
    list[str] | None,
    typer.Option("--lm-eval", help="Tasks of lm-evaluation-harness by name or pattern, separated by commas."),
]
IncludePath = Annotated[
    Path | None, typer.Option("--include-path", help="A folder of your own tasks for --lm-eval, as YAML files.")
]
NumFewshot = Annotated[
    int | None,
    typer.Option("--num-fewshot", help="Examples before each question of --lm-eval; the task's if left out."),
]
ApplyChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--apply-chat-template/--no-apply-chat-template",
        help="Ask questions as a chat, or as text. Left out, as a chat where the model can; --lm-eval as text.",
    ),
]
FILES = (".json", ".jsonl", ".md")


@dataclass(frozen=True, slots=True)
class Asking:
    """The options of ``--lm-eval`` as given."""

    names: Sequence[str]
    include_path: Path | None
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessRun:
    """What is asked of which models, and where it goes; ``options`` is what else decides the answers."""

    models: Sequence[str]
    tasks: HarnessTasks
    out: Sequence[Path]
    options: Sequence[str]

    def measure(self, opener: Callable[[str], LanguageModel]) -> dict[str, Results]:
        """Measure every model, write the files and return the results."""
        from fathom.inference.harness.responses import Responses
        from fathom.inference.harness.runs import run_harness

        display = make_display(FilteredConsole(stderr=True))
        found: dict[str, Results] = {}
        try:
            with self._journal() as journal:
                for number, name in enumerate(self.models, start=1):
                    model = opener(name)
                    model_options.announce(model)

                    def keep(record: dict[str, Any], name: str = name) -> None:
                        if journal is not None:
                            journal.add({"model": name, **record})

                    done = [each for each in (journal.records if journal is not None else ()) if each["model"] == name]
                    display.stage(f"{name} {listed(self.tasks.names, 3)}", number, len(self.models))
                    started = time.perf_counter()
                    found[name] = run_harness(model, self.tasks, progress=display, responses=Responses(done, keep))
                    display.finish(time.perf_counter() - started)
                    del model
                display.close()
                self._write(found)
                if journal is not None:
                    journal.remove()
        except KeyboardInterrupt:
            raise interruption(self.out) from None
        finally:
            display.close()
        return found

    @contextmanager
    def _journal(self) -> Iterator[Journal | None]:
        from fathom.inference.journal import open_journal

        if not self.out:
            yield None
            return
        asked = [list(self.tasks.names), self.tasks.num_fewshot, self.tasks.limit, self.tasks.apply_chat_template]
        work = {"models": list(self.models), "tasks": asked, "options": list(self.options)}
        with open_journal(self.out[0], work) as journal:
            yield journal

    def _write(self, found: Mapping[str, Results]) -> None:
        from fathom.inference.harness.runs import sample_lines

        for path in self.out:
            if path.suffix == ".json":
                write_text(path, json_text(document(found), indent=1))
            elif path.suffix == ".md":
                write_text(path, tables(found))
            else:
                lines = [line for name, results in found.items() for line in sample_lines(results, name)]
                write_text(path, "".join(lines))


def open_run(
    asking: Asking, others: Mapping[str, object], paths: Mapping[str, str], out: Sequence[Path], given: Sequence[str]
) -> HarnessRun:
    """Check what is asked before a model is opened; ``others`` are options that ``--lm-eval`` does not take."""
    from fathom.inference.comparison import check_chat_templates
    from fathom.inference.harness.runs import open_harness_tasks
    from fathom.inference.journal import check_absent

    for option, value in others.items():
        if value:
            raise SpecError(option, "is not about --lm-eval", "leave it out, or call fathom evaluate twice")
    names = [name.strip() for each in asking.names for name in each.split(",") if name.strip()]
    if not names:
        raise SpecError("--lm-eval", "names no task", "give some: --lm-eval hellaswag,arc_easy")
    for path in out:
        if path.suffix not in FILES:
            raise SpecError("--out", f"{path} is no file of --lm-eval", "end it with .json, .jsonl or .md")
        check_absent(path)
    tasks = open_harness_tasks(
        names,
        include_path=asking.include_path,
        num_fewshot=asking.num_fewshot,
        limit=asking.limit,
        apply_chat_template=bool(asking.apply_chat_template),
    )
    if asking.apply_chat_template:
        check_chat_templates(list(paths.values()), (), options.cache_directory())
    return HarnessRun(models=list(paths), tasks=tasks, out=out, options=given)


def check_absent_options(include_path: Path | None, num_fewshot: int | None) -> None:
    """Refuse options of the harness where none of its tasks is asked."""
    for option, value in (("--include-path", include_path), ("--num-fewshot", num_fewshot)):
        if value is not None:
            raise SpecError(option, "is about --lm-eval", "name tasks with --lm-eval, or leave it out")


def show(found: Mapping[str, Results], *, as_json: bool) -> None:
    """Print results: the harness's tables, or JSON."""
    if as_json:
        print_json(document(found), indent=1)
    else:
        print(tables(found), end="")
        print("values and standard errors are lm-evaluation-harness's", file=sys.stderr)


def document(found: Mapping[str, Results]) -> dict[str, Any]:
    """Return the harness's results of one model, or of several by name."""
    from fathom.inference.harness.runs import results_document

    documents = {name: results_document(results) for name, results in found.items()}
    return next(iter(documents.values())) if len(documents) == 1 else {"models": documents}


def tables(found: Mapping[str, Results]) -> str:
    """Return the harness's tables in Markdown, under the models' names where there are several."""
    from fathom.inference.harness.runs import results_table

    if len(found) == 1:
        return results_table(next(iter(found.values())))
    return "\n".join(f"{name}:\n\n{results_table(results)}" for name, results in found.items())
