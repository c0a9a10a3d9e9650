"""Which files of a repository make the model: the smallest set that opens it, in the order transformers prefers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from fathom.checkpoint.gguf.part_names import SUFFIX as GGUF
from fathom.checkpoint.gguf.part_names import group_parts, parse_part_name
from fathom.checkpoint.hf.files import CONFIG, GENERATION, INDEX, TOKENIZER_FILES, WEIGHTS, read_json, shard_names
from fathom.checkpoint.hf.sentencepiece import FILE as SENTENCEPIECE
from fathom.checkpoint.hf.unreadable import ADAPTER, PICKLES, explain_unreadable
from fathom.checkpoint.hub.names import HubName
from fathom.errors import CheckpointError
from fathom.logs import listed
from fathom.tokenizer.chat_templates import TEMPLATE_FOLDER

DESCRIPTIONS = (
    *(CONFIG, GENERATION, *TOKENIZER_FILES, f"{TEMPLATE_FOLDER}/*.jinja"),
    *(SENTENCEPIECE, "vocab.json", "vocab.txt", "merges.txt"),
    "preprocessor_config.json",
    "processor_config.json",
    "*.safetensors.index.json",
    ADAPTER,
)
"""What is fetched of a repository beside weights, where it is there."""
_NOT_MODELS = ("mmproj*", "*imatrix*")
"""Names of GGUF files that hold an image projector, or statistics for quantizing."""
_TAG = re.compile(
    r"(?:^|[-._/])(?P<tag>(?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|BF16|FP16|F16|F32|MXFP4(?:_MOE)?))(?=$|[-./])",
    re.IGNORECASE,
)
_UNREAD_TAGS = ("IQ", "TQ", "MXFP4")
_LISTED = 12


@dataclass(frozen=True, slots=True)
class GGUFChoice:
    """One GGUF model of a repository: its files, the first of which is opened, and its quantisation by their names."""

    files: tuple[str, ...]
    tag: str | None

    @property
    def opens(self) -> str:
        """The file to open."""
        return self.files[0]

    @property
    def is_read(self) -> bool:
        """Whether its types are among those that Fathom reads, by its name."""
        return self.tag is None or not self.tag.removeprefix("UD-").startswith(_UNREAD_TAGS)


def descriptions(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files that describe a model and its text, of those that a repository lists."""
    return tuple(
        name
        for name in names
        if any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in DESCRIPTIONS)
    )


def has_safetensors(names: Collection[str]) -> bool:
    """Whether a repository publishes a model in transformers' form: a config with safetensors beside it."""
    return CONFIG in names and any("/" not in name and _is_weights(name) for name in names)


def _is_weights(name: str) -> bool:
    return name in (WEIGHTS, INDEX) or (name.endswith(".safetensors") and not name.startswith("consolidated"))


def weight_files(name: HubName, names: Collection[str], directory: Path) -> tuple[str, ...]:
    """Return the files of weights by the config and the index, which lie in ``directory`` already.

    Raises:
        CheckpointError: there are none, or some that are named are not published.
    """
    named = read_json(directory / CONFIG).get("transformers_weights")
    first = named if isinstance(named, str) and named in names else WEIGHTS if WEIGHTS in names else INDEX
    if first not in names:
        reason = explain_unreadable(directory, [each for each in names if "/" not in each])
        raise CheckpointError(
            f"{name}: {reason or f'publishes neither {WEIGHTS} nor {INDEX}; choose another repository'}"
        )
    if not first.endswith(".json"):
        return (first,)
    shards = sorted(set(shard_names(directory / first).values()))
    absent = [shard for shard in shards if shard not in names]
    if absent:
        raise CheckpointError(
            f"{name}: {len(absent)} of {len(shards)} files of {first} are not published ({', '.join(absent[:5])}); "
            "choose another revision"
        )
    return tuple(shards)


def choose_gguf(name: HubName, names: Collection[str]) -> GGUFChoice:
    """Return the GGUF model of a repository that is meant: by its quantisation, by its file, or the only one.

    Raises:
        CheckpointError: none or several are meant, or parts of it are not published; the message lists the choices.
    """
    groups = gguf_choices(names)
    if not groups:
        raise CheckpointError(f"{name}: publishes no .gguf files; give {name.repo_id} alone, or another repository")
    meant = _meant(groups, name.choice) if name.choice is not None else groups
    if not meant:
        raise CheckpointError(f"{name.repo_id}: has no {name.choice}; choose one of {_listed(name, groups)}")
    if len(meant) > 1:
        what = f"{name.choice} is {len(meant)} models of it" if name.choice else f"publishes {len(meant)} GGUF models"
        raise CheckpointError(f"{name.repo_id}: {what}; choose one of {_listed(name, meant)}")
    (choice,) = meant
    if not choice.is_read:
        readable = [group for group in groups if group.is_read]
        remedy = f"choose one of {_listed(name, readable)}" if readable else "choose another repository"
        raise CheckpointError(f"{name}: {choice.tag} is no type that Fathom reads; {remedy}")
    _check_parts(name, choice)
    return choice


def gguf_choices(names: Collection[str]) -> list[GGUFChoice]:
    """Group the .gguf files of a repository by model."""
    found = [name for name in names if name.lower().endswith(GGUF) and not _is_no_model(name)]
    return [GGUFChoice(tuple(files), _tag(files[0])) for files in group_parts(found).values()]


def _is_no_model(name: str) -> bool:
    return any(fnmatch(PurePosixPath(name).name.lower(), pattern) for pattern in _NOT_MODELS)


def _stem(file: str) -> str:
    part = parse_part_name(file)
    return part.stem if part is not None else file[: -len(GGUF)]


def _tag(file: str) -> str | None:
    found = [match["tag"].upper() for match in _TAG.finditer(_stem(file))]
    return found[-1] if found else None


def _meant(groups: Sequence[GGUFChoice], choice: str) -> list[GGUFChoice]:
    if choice.lower().endswith(GGUF):
        exact = [group for group in groups if any(file.lower() == choice.lower() for file in group.files)]
        return exact or [
            group for group in groups if any(PurePosixPath(file).name.lower() == choice.lower() for file in group.files)
        ]
    exact = [group for group in groups if group.tag == choice.upper()]
    inside = re.compile(rf"(^|[-._/]){re.escape(choice)}($|[-./])", re.IGNORECASE)
    return exact or [group for group in groups if inside.search(_stem(group.opens))]


def _check_parts(name: HubName, choice: GGUFChoice) -> None:
    part = parse_part_name(choice.opens)
    if part is not None and part.count != len(choice.files):
        raise CheckpointError(
            f"{name}: {len(choice.files)} of {part.count} parts of {part.stem} are published; choose another revision"
        )


def explain_unpublished(name: HubName, names: Collection[str], directory: Path | None) -> CheckpointError:
    """Return what to say of a repository without safetensors and .gguf files; its adapter_config.json may be there."""
    top = [each for each in names if "/" not in each]
    pickles = [each for each in top if each.endswith(PICKLES)]
    reason = explain_unreadable(directory or Path(), [each for each in top if each not in pickles])
    if reason is not None:
        return CheckpointError(f"{name}: {reason}")
    if not pickles:
        return CheckpointError(f"{name}: publishes neither safetensors nor .gguf files; choose another repository")
    folder = name.repo_id.rpartition("/")[2]
    return CheckpointError(
        f"{name}: publishes no safetensors, and pickled weights ({pickles[0]}) are never read; choose another "
        f"repository, or run 'hf download {name.repo_id} --local-dir {folder}' and open {folder} to see how to convert"
    )


def _listed(name: HubName, groups: Sequence[GGUFChoice]) -> str:
    """List names that choose each of the models: by quantisation where that is enough, else by file."""
    tags = [group.tag for group in groups]
    base = str(HubName(name.repo_id, name.revision))
    shown = [
        f"{base}:{group.tag if group.tag is not None and tags.count(group.tag) == 1 else group.opens}"
        for group in groups
    ]
    return listed(shown, _LISTED)
