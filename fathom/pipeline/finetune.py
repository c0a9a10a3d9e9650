"""``fathom finetune`` as a recipe: open a model, learn the user's data, ask before and after, and report.

Defaults depend on the size of the model and of the data alone, so that the same command continues a run anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fathom.data.forms import AS_FOUND, Columns
from fathom.data.validation_split import FEWEST
from fathom.errors import DataError, ResourceError, SpecError
from fathom.pipeline.context import RunPlan
from fathom.pipeline.data_inspection import inspect_data
from fathom.pipeline.recipe import make_recipe
from fathom.plan import count_parameters, training_memory
from fathom.progress import size
from fathom.spec.adapter import LoraSpec
from fathom.spec.alignment import ConversationFile, DpoStep, EpochsSpec, OpenStep, PairFile, SftStep
from fathom.spec.answering import RepliesStep
from fathom.spec.epochs import EpochBatch, ValidationSpec
from fathom.spec.mapping import to_mapping
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import Recipe, ReportStep
from fathom.spec.train import AdamWSpec, Checkpointing, CosineDecay
from fathom.system import memory_limit

USES = ("conversations", "preferences")
RATES = ((0.3e9, 1e-4), (1.5e9, 5e-5), (10e9, 2e-5), (math.inf, 1e-5))
"""Learning rates of full fine-tuning by the most parameters that a model has: larger models take smaller steps."""
LORA_RATE, DPO_SHARE = 3e-4, 0.1
"""The rate of adapters, and what rates of preferences are of those of conversations."""
EPOCHS = ((300, 4.0), (math.inf, 3.0))
"""Epochs by the most examples that a data set has: few examples have to be seen more often."""
BATCHES = ((100, 4), (2000, 8), (20000, 16), (math.inf, 32))
"""Examples of a step, by the most that a data set has."""
FEWEST_HELD_OUT = 5
"""So many examples let one be held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuning:
    """What a user may say of a fine-tuning; None leaves it to the defaults."""

    epochs: float | None = None
    rate: float | None = None
    batch: int | None = None
    max_length: int | None = None
    lora: bool = False
    rank: int | None = None
    quantize: str | None = None

    def adapter(self) -> LoraSpec | None:
        """Return the adapter that is trained; None where all weights are.

        Raises:
            SpecError: what belongs to an adapter is given without one.
        """
        if not self.lora:
            for name, value in (("--rank", self.rank), ("--quantize", self.quantize)):
                if value is not None:
                    raise SpecError(name, "is about an adapter", "add --lora, or leave it out")
            return None
        rank = 16 if self.rank is None else self.rank
        fields: dict[str, Any] = {} if self.quantize is None else {"quantize_base": self.quantize}
        return LoraSpec(rank=rank, alpha=2.0 * rank, **fields)


@dataclass(frozen=True, slots=True)
class TuningData:
    """A user's file: ``kind`` is one of ``USES``, of ``rows`` usable ones, read by ``columns``."""

    path: Path
    kind: str
    rows: int
    columns: Columns = AS_FOUND

    @property
    def unit(self) -> str:
        """What its rows are called."""
        return "conversations" if self.kind == "conversations" else "pairs"


def read_tuning_data(path: Path, columns: Columns = AS_FOUND) -> TuningData:
    """Look at every row of a file or folder; a form that a recipe would have to name is taken if it is the only one.

    Raises:
        DataError: it cannot be read, or holds neither conversations nor pairs; the message names what was found, and
            the forms that are known.
    """
    found = inspect_data(path, columns=columns)
    uses = {use["kind"]: use for use in found["uses"] if not use["refused"]}
    kind = next((kind for kind in reversed(USES) if uses.get(kind, {}).get("used")), None)
    if kind is None:
        kind = next((kind for kind in USES if kind in uses), None)
    if kind is not None and uses[kind]["used"]:
        return TuningData(path, kind, int(uses[kind]["used"]), columns)
    choices = list(dict.fromkeys(choice["format"] for choice in found["choices"] if choice["kind"] in USES))
    if kind is None and len(choices) == 1 and columns.format is None:
        return read_tuning_data(path, replace(columns, format=choices[0]))
    names = ", ".join(found["columns"]) or "text without columns"
    first = next((str(problem[1]) for problem in uses.get(kind or "", {}).get("problems", {}).values()), "")
    why = f" ({first})" if first else f" (could be {', '.join(choices)}: give one by --format)" if choices else ""
    raise DataError(
        f"{path}: holds {names}, and no conversation or pair of answers to learn from{why}; give rows such as "
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
        "conversations (ShareGPT), prompt + completion, instruction + output, or prompt + chosen + rejected; "
        f"see how each is read with: fathom inspect {path}"
    )


def finetuning_plan(
    model: str, spec: ModelSpec, data: TuningData, wanted: Finetuning, overrides: Sequence[str] = ()
) -> RunPlan:
    """Return the recipe of a fine-tuning, with ``overrides`` as ``--set`` gives them."""
    path, adapter = str(data.path.resolve()), wanted.adapter()
    read: dict[str, Any] = {"format": data.columns.format, "fields": dict(data.columns.fields)}
    train = _training(spec, data, wanted, adapter)
    learn: SftStep | DpoStep
    if data.kind == "conversations":
        learn = SftStep(train=train, data=(ConversationFile(path=path, **read),))
    else:
        learn = DpoStep(train=train, pairs=(PairFile(path=path, **read),))
    beside = Path(model).expanduser()
    opened = OpenStep(model=str(beside.resolve()) if beside.exists() else model)
    recipe = Recipe(name=f"finetune-{data.path.stem}", steps=(opened, learn, RepliesStep(), ReportStep()))
    if overrides:
        recipe = make_recipe(to_mapping(recipe), overrides)
    return RunPlan(recipe=recipe, manifests={})


def _training(spec: ModelSpec, data: TuningData, wanted: Finetuning, adapter: LoraSpec | None) -> EpochsSpec:
    parameters = count_parameters(spec).total
    rate = LORA_RATE if adapter is not None else _by_size(RATES, parameters)
    if data.kind == "preferences":
        rate *= DPO_SHARE
    size = wanted.batch or int(_by_size(BATCHES, data.rows))
    share = None if data.rows >= FEWEST else 1 / data.rows if data.rows >= FEWEST_HELD_OUT else 0.0
    return EpochsSpec(
        epochs=wanted.epochs or _by_size(EPOCHS, data.rows),
        batch=EpochBatch(conversations=size) if data.kind == "conversations" else EpochBatch(pairs=size),
        sequence_length=wanted.max_length,
        optimizer=AdamWSpec(lr=wanted.rate or rate, beta2=0.999, weight_decay=0.01),
        schedule=CosineDecay(warmup_fraction=0.1),
        validation=ValidationSpec(fraction=share),
        patience=3 if share != 0 else None,
        log_every_steps=1 if data.rows < 1000 else 10,
        checkpoint=Checkpointing(keep=1),
        adapter=adapter,
    )


def _by_size(table: Sequence[tuple[float, float]], size: float) -> float:
    return next(value for most, value in table if size <= most)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningMemory:
    """Bytes that fine-tuning takes: of all weights, and with the adapter that is trained instead, if any."""

    full: int
    adapter: int | None
    limit: int

    @property
    def needed(self) -> int:
        """What this fine-tuning takes."""
        return self.full if self.adapter is None else self.adapter


def tuning_memory(spec: ModelSpec, tokens: int, adapter: LoraSpec | None) -> TuningMemory:
    """Estimate the memory of a step on ``tokens`` tokens, with all weights in float32, and with an adapter."""
    full = training_memory(spec, tokens=tokens)
    if adapter is None:
        return TuningMemory(full=full.total, adapter=None, limit=memory_limit())
    needed = training_memory(spec, tokens=tokens, adapter=adapter).total
    return TuningMemory(full=full.total, adapter=needed, limit=memory_limit())


def check_memory(memory: TuningMemory, wanted: Finetuning) -> None:
    """Refuse a fine-tuning that no part of this machine's memory holds.

    Raises:
        ResourceError: with what takes less.
    """
    if memory.needed <= memory.limit:
        return
    less = "add --lora" if not wanted.lora else "add --quantize int4" if wanted.quantize != "int4" else ""
    remedy = less or "take a smaller model"
    raise ResourceError(
        f"memory: fine-tuning takes about {size(memory.needed)}, and this machine has {size(memory.limit)}; {remedy}"
    )
