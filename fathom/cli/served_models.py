"""The models of ``fathom serve``: names and aliases, sizes from headers, and how each is loaded."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fathom.cli import options
from fathom.cli.load_progress import LoadProgress
from fathom.cli.model_options import read_template
from fathom.errors import DataError, SpecError
from fathom.locale import tr
from fathom.spec import check
from fathom.spec.engine import WEIGHT_CHOICES, EngineSpec, WeightChoice

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel
    from fathom.progress import Progress
    from fathom.serve.model_definition import ModelDefinition

GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model as the command line names it."""

    name: str
    path: str
    aliases: tuple[str, ...] = ()
    adapters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OpeningOptions:
    """How each model is opened; ``chat_template`` is the option as given."""

    device: str
    dtype: str
    weights: str
    engine: EngineSpec
    chat_template: str | None = None


def named_models(given: Sequence[str], served_name: str | None, aliases: Sequence[str]) -> list[NamedModel]:
    """Return the models of ``MODEL`` and ``NAME=MODEL`` arguments with their aliases.

    Raises:
        SpecError: two have one name, a name is given for several, or an alias is of no model.
    """
    pairs = [_split(each) for each in given]
    if served_name is not None:
        if len(pairs) > 1:
            problem = f"{served_name!r} is one name, and {len(pairs)} models are served"
            raise SpecError("--served-name", problem, "write NAME=PATH for each instead")
        pairs = [(served_name, pairs[0][1])]
    names = [name for name, _ in pairs]
    for name, path in pairs:
        if not name.strip():
            raise SpecError("MODEL", f"{path!r} gives no name", "write NAME=PATH")
        if names.count(name) > 1:
            raise SpecError("MODEL", f"{name!r} names two models", f"give one another name: NAME={path}")
    by_model = _aliases(aliases, names)
    return [NamedModel(name, path, by_model[name]) for name, path in pairs]


def with_adapters(models: Sequence[NamedModel], given: Sequence[str]) -> list[NamedModel]:
    """Return the models with the adapters that NAME=DIRECTORY give; there is one model where there are adapters.

    Raises:
        SpecError: no NAME=DIRECTORY, a name that is taken, or several models.
    """
    found = list(models)
    taken = {name for model in models for name in (model.name, *model.aliases)}
    for each in given:
        name, sign, path = each.partition("=")
        if not (sign and name.strip() and path):
            raise SpecError("--lora", f"{each!r} is not NAME=DIRECTORY", f"write {each or 'name'}=DIRECTORY")
        if len(models) > 1:
            raise SpecError("--lora", f"{len(models)} models are served", "serve the adapters' base model alone")
        if name in taken:
            raise SpecError("--lora", f"{name!r} is taken", "give each adapter a name of its own")
        taken.add(name)
        found[0] = dataclasses.replace(found[0], adapters=(*found[0].adapters, (name, path)))
    return found


def add_adapters(model: LanguageModel, named: NamedModel) -> None:
    """Read a model's adapters into its engine, and say what each takes."""
    from fathom.inference.adapters import open_adapter

    for name, path in named.adapters:
        adapter = open_adapter(path, model.spec)
        model.engine.add_adapter(name, adapter)
        held = f"{adapter.nbytes:,}"
        print(tr("adapter {name}: {bytes} bytes, {folder}", name=name, bytes=held, folder=path), file=sys.stderr)


def definitions(models: Sequence[NamedModel], opening: OpeningOptions, memory: int) -> list[ModelDefinition]:
    """Return what the server needs of each model, from its headers; what is not on this machine is fetched now.

    ``memory`` is what all of them may take together, in bytes.

    Raises:
        CheckpointError: nothing loadable.
        DataError: a model has no tokenizer.
    """
    check.one_of("--weights", opening.weights, WEIGHT_CHOICES)
    template = read_template(opening.chat_template)
    return [_definition(model, opening, memory, template) for model in models]


def default_memory(device: str) -> int:
    """Return the bytes that models may take together: four fifths of the memory this process may use."""
    from fathom.engine.cache_sizing import memory_bytes
    from fathom.model.device import resolve_device
    from fathom.system import memory_limit

    where = resolve_device(device)
    return (memory_bytes(where) if where.type == "cuda" else memory_limit()) * 4 // 5


def default_name(path: str) -> str:
    """Return the name of a model that is given none: the last part of its path, without .gguf and its part's number."""
    from fathom.checkpoint.gguf.part_names import parse_part_name

    last = Path(os.path.abspath(path)).name
    part = parse_part_name(last)
    if part is not None:
        return part.stem
    return last[: -len(GGUF)] if last.lower().endswith(GGUF) else last


def _split(given: str) -> tuple[str, str]:
    name, sign, path = given.partition("=")
    if sign and path and "/" not in name and not Path(given).exists():
        return name, path
    return default_name(given), given


def _aliases(given: Sequence[str], names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    taken = set(names)
    for each in given:
        alias, sign, name = each.partition("=")
        name = name if sign or len(names) > 1 else names[0]
        if not alias.strip() or name not in found:
            known = ", ".join(map(repr, names))
            raise SpecError(
                "--alias", f"{each!r} is no alias of {known}", f"give one such as {alias or 'x'}={names[0]}"
            )
        if alias in taken:
            raise SpecError("--alias", f"{alias!r} is taken", "give each alias once, and none that is a model's name")
        taken.add(alias)
        found[name] += (alias,)
    return found


def _definition(named: NamedModel, opening: OpeningOptions, memory: int, template: str | None) -> ModelDefinition:
    from fathom.inference.decoder_loading import planned_weights
    from fathom.inference.language_model import LanguageModel, resolve_dtype
    from fathom.inference.loading import open_source
    from fathom.inference.suggestions import suggestions_for
    from fathom.model.device import resolve_device
    from fathom.serve.model_definition import ModelDefinition, facts_of, memory_of

    cache_dir = options.cache_directory()
    with LoadProgress(named.path) as shown:
        source = open_source(named.path, shown, cache_dir=cache_dir)
    tokenizer = source.tokenizer()
    if tokenizer is None:
        raise DataError(f"{source.path}: has no tokenizer; put tokenizer.json beside the weights")
    if template is not None:
        tokenizer = tokenizer.with_template(template)
    device = resolve_device(opening.device)
    dtype, weights = resolve_dtype(opening.dtype, device), cast(WeightChoice, opening.weights)
    shown_weights, weight_bytes = planned_weights(source, device, dtype, weights)
    bits = dtype.itemsize * 8
    takes = memory_of(source.spec, opening.engine, memory, bits, weight_bytes)
    engine = dataclasses.replace(opening.engine, cache_tokens=takes.cache_tokens)

    def load(progress: Progress) -> LanguageModel:
        opened = LanguageModel.open(
            named.path,
            device=opening.device,
            dtype=opening.dtype,
            weights=weights,
            progress=progress,
            cache_dir=cache_dir,
            engine=engine,
            chat_template=template,
        )
        add_adapters(opened, named)
        return opened

    facts = facts_of(
        source.spec,
        tokenizer,
        suggestions_for(source.path, tokenizer),
        engine=engine,
        cache_tokens=takes.cache_tokens,
        bits=bits,
        nbytes=takes.total,
        weights=shown_weights,
    )
    return ModelDefinition(
        name=named.name,
        open=load,
        facts=facts,
        nbytes=takes.total,
        aliases=named.aliases,
        adapters=tuple(name for name, _ in named.adapters),
    )
