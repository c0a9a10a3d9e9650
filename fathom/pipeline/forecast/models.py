"""The models that the steps of a recipe work with, as far as they are known before it runs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fathom.checkpoint.weights import WeightSource
from fathom.inference.catalog import catalog
from fathom.inference.loading import open_source
from fathom.inference.run_record import last_before
from fathom.pipeline.context import RunPlan, init_step, model_step, spec_during, taught_by, with_extended_context
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import DistillStep, ModelStep, OpenStep, StartingStep, Step, TrainStep


def local_source(base: Path, name: str, cache_dir: Path) -> WeightSource | None:
    """Open a model's headers where it lies on this machine; None where a run would first fetch it.

    A path starts from ``base``.

    Raises:
        CheckpointError: a path that holds no model.
    """
    beside = base / Path(name).expanduser()
    if beside.exists():
        return open_source(beside)
    entry = catalog().get(name)
    if entry is None:
        return None if name.count("/") == 1 and not name.startswith((".", "/", "~")) else open_source(name)
    file = cache_dir.expanduser() / "models" / entry.member_sha256 / PurePosixPath(entry.member).name
    return open_source(file) if file.is_file() else None


class RecipeModels:
    """The spec of the model at each step; headers of opened models are read once."""

    def __init__(self, plan: RunPlan, cache_dir: Path) -> None:
        self._plan, self._cache_dir = plan, cache_dir
        self._sources: dict[str, WeightSource | None] = {}

    def source(self, step: OpenStep) -> WeightSource | None:
        """Return the headers of an open step's model, None where it is not here yet."""
        if step.name not in self._sources:
            self._sources[step.name] = local_source(self._plan.base, step.model, self._cache_dir)
        return self._sources[step.name]

    def teacher(self, step: DistillStep) -> ModelSpec | None:
        """Return the model that a distill step learns from, None where a run would first fetch it."""
        taught = taught_by(self._plan.recipe, step)
        if taught is not None:
            return self.of(taught)
        source = local_source(self._plan.base, step.teacher, self._cache_dir)
        return None if source is None else source.spec

    def before(self, step: Step) -> ModelSpec | None:
        """Return the model that a step works with, None where only the run knows."""
        if isinstance(step, TrainStep):
            return self.of(step)
        if isinstance(step, StartingStep):
            return self.of(model_step(self._plan.recipe, step))
        earlier: ModelStep | None = last_before(self._plan.recipe, step, ModelStep)
        return None if earlier is None else self.of(earlier)

    def of(self, step: ModelStep) -> ModelSpec | None:
        """Return the model that a step leaves."""
        if isinstance(step, OpenStep):
            source = self.source(step)
            return None if source is None else source.spec
        if not isinstance(step, TrainStep):
            return self.of(model_step(self._plan.recipe, step))
        spec = spec_during(self._plan.recipe, step)
        if spec is not None:
            return spec
        first = init_step(self._plan.recipe, step)
        opened = None if first is None else self.of(first)
        return None if opened is None else with_extended_context(self._plan.recipe, step, opened)
