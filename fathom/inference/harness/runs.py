"""Runs tasks of lm-evaluation-harness with a Fathom model; its own code loads tasks, makes prompts and scores."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.errors import DataError, FathomError, SpecError, reason_of
from fathom.extras import install_extra
from fathom.inference.harness.responses import Responses
from fathom.inference.language_model import LanguageModel
from fathom.inference.request_preparation import require_chat_template
from fathom.progress import NULL_PROGRESS, Progress

Results = Mapping[str, Any]
_UNSAFE = "confirm_run_unsafe_code"


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTasks:
    """Tasks by name, groups and tags included, and how they are asked; ``manager`` is the harness's."""

    names: Sequence[str]
    manager: Any
    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False


def open_harness_tasks(
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
) -> HarnessTasks:
    """Find tasks, groups and tags by name, pattern or YAML file; ``include_path`` is a folder of further YAML files.

    Their data is not loaded yet. A task's own Python functions are run when it is used, those of ``include_path`` too.

    Raises:
        DataError: lm-eval is not installed, or ``include_path`` is no folder.
        SpecError: a name is no task's, or a number is out of range.
    """
    for option, value, least in (("--num-fewshot", num_fewshot, 0), ("--limit", limit, 1)):
        if value is not None and value < least:
            raise SpecError(option, f"{value}", f"give at least {least}")
    if include_path is not None and not include_path.is_dir():
        raise DataError(f"--include-path {include_path}: there is no such folder; give one that holds YAML files")
    require_harness()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=_text(include_path), include_defaults=False)
    found = {name: _matches(manager, name) for name in names}
    own = {each for matches in found.values() for each in matches if each not in names or not Path(each).is_file()}
    if not all(found.values()) or not own <= set(manager.all_subtasks):  # reading the names of all takes long
        manager = TaskManager(include_path=_text(include_path))
        found = {name: _matches(manager, name) for name in names}
    for name, matches in found.items():
        if not matches:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            meant = f"did you mean {' or '.join(near)}?" if near else "list them with: lm_eval ls tasks"
            raise SpecError("--lm-eval", f"there is no task {name!r}", meant)
    return HarnessTasks(
        names=list(dict.fromkeys(each for matches in found.values() for each in matches)),
        manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=apply_chat_template,
    )


def _matches(manager: Any, name: str) -> list[str]:
    if Path(name).suffix == ".yaml" and Path(name).is_file():
        return [name]
    return list(manager.match_tasks([name]))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def require_harness() -> None:
    """Raise ``DataError`` with the command that installs lm-eval, unless it is there."""
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"--lm-eval needs {error.name or 'lm_eval'}, which is not installed; {install_extra('evals')}"
        ) from None


def run_harness(
    model: LanguageModel,
    tasks: HarnessTasks,
    *,
    progress: Progress = NULL_PROGRESS,
    responses: Responses | None = None,
) -> Results:
    """Measure a model on tasks; return the harness's results, with every sample under ``samples``.

    Raises:
        DataError: the model has no chat template and one is asked for; a task or its data cannot be used.
        FathomError: the model cannot answer a request.
    """
    from lm_eval.evaluator import simple_evaluate

    from fathom.inference.harness.model import HarnessModel

    if tasks.apply_chat_template:
        require_chat_template(model.tokenizer, str(model.path))
    asked = HarnessModel(model, progress=progress, responses=responses)
    try:
        results = simple_evaluate(
            model=asked,
            tasks=list(tasks.names),
            num_fewshot=tasks.num_fewshot,
            limit=tasks.limit,
            apply_chat_template=tasks.apply_chat_template,
            task_manager=tasks.manager,
        )
    except FathomError:
        raise
    except Exception as error:  # whatever a task's code or its data's loader raises
        if asked.answering:
            raise
        raise _explained(error, tasks) from error
    return dict(results)


def _explained(error: Exception, tasks: HarnessTasks) -> DataError:
    listed = ", ".join(tasks.names)
    if _UNSAFE in str(error):
        return DataError(
            f"--lm-eval {listed}: runs programs that the model writes, without a sandbox; choose another task, or use "
            f"python -m fathom.cli.lm_eval with --{_UNSAFE}"
        )
    return DataError(
        f"--lm-eval {listed}: cannot be run ({type(error).__name__}: {reason_of(error)}); check the task's data, "
        "which the harness fetches from the hub unless a task names files"
    )


def results_table(results: Results) -> str:
    """Return the harness's table of metrics with standard errors, and that of groups where there are any: Markdown."""
    from lm_eval.utils import make_table

    tables = [make_table(dict(results)), *([make_table(dict(results), "groups")] if results.get("groups") else [])]
    return "\n".join(table.strip("\n") + "\n" for table in tables)


def results_document(results: Results) -> dict[str, Any]:
    """Return results without their samples as plain JSON."""
    from lm_eval.utils import handle_non_serializable

    kept = {name: value for name, value in results.items() if name != "samples"}
    document: dict[str, Any] = json.loads(json.dumps(kept, default=handle_non_serializable))
    return document


def sample_lines(results: Results, model: str) -> list[str]:
    """Return every sample as a line of JSON: the document, the requests, the answers and their metrics."""
    from lm_eval.utils import handle_non_serializable

    return [
        json.dumps({"model": model, "task": task, **sample}, default=handle_non_serializable, ensure_ascii=False) + "\n"
        for task, samples in results["samples"].items()
        for sample in samples
    ]
