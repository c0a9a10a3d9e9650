"""What a directory holds that is no model Fathom reads, and what to do about it: one line for each published form."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from fathom.checkpoint.located import list_directory
from fathom.files import read_text
from fathom.logs import listed

ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of pickled weights."""
_OTHER_LIBRARIES = {".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".tflite": "TensorFlow Lite"}
_SAFETENSORS = ".safetensors"
_LISTED = 5
_TO_SAFETENSORS = (
    "import sys, transformers; path = sys.argv[1]; "
    "transformers.AutoModelForCausalLM.from_pretrained(path).save_pretrained(path)"
)
_PUBLISHED_FORM = "config.json, tokenizer.json and model*.safetensors"


def explain_unreadable(directory: Path, names: Sequence[str] | None = None) -> str | None:
    """Return a line, without the directory's name, on weights that are there but not read; None where there are none.

    The directory was found to have no weights of any form that is read. ``names`` are the files of a repository of
    which some lie in the directory; left out, those of the directory.
    """
    if names is None:
        names = [file.name for file in list_directory(directory) if not file.name.startswith(".")]
    for explain in (_adapter, _first_release, _pipeline, _nested, _pickled, _other_library, _safetensors):
        line = explain(directory, names)
        if line is not None:
            return line
    return None


def explain_nested(directory: Path) -> str | None:
    """Return a line on models that lie in directories of this one, as quantisations or a trainer's checkpoints do."""
    snapshots = directory / "snapshots"  # of a repository in the hub's cache
    places = [*list_directory(directory), *(list_directory(snapshots) if snapshots.is_dir() else [])]
    inner = [str(place.relative_to(directory)) for place in places if place.is_dir() and _holds_model(place)]
    if not inner:
        return None
    return f"holds no model itself, but there is one in {listed(inner, _LISTED)}; give {directory / inner[0]}"


def _holds_model(directory: Path) -> bool:
    try:
        names = [file.name.lower() for file in directory.iterdir()]
    except OSError:
        return False
    published = "config.json" in names and any(name.endswith(_SAFETENSORS) for name in names)
    return published or any(name.endswith(".gguf") for name in names)


def conversion_command(directory: Path) -> str:
    """Return a command line that writes safetensors beside pickled weights."""
    return f'python -c "{_TO_SAFETENSORS}" {shlex.quote(str(directory))}'


def _adapter(directory: Path, names: Sequence[str]) -> str | None:
    if ADAPTER not in names:
        return None
    try:
        base = json.loads(read_text(directory / ADAPTER))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        base = None
    of = f" of {base}" if isinstance(base, str) and base.isprintable() and base else ""
    whole = base if of else "its base model"
    return (
        f"is an adapter{of} ({ADAPTER}), no whole model; open {whole} and give the adapter beside it (--adapter, or "
        "adapter= in fathom.load)"
    )


def _first_release(directory: Path, names: Sequence[str]) -> str | None:
    weights = [name for name in names if name.startswith("consolidated") and name.endswith((_SAFETENSORS, ".pth"))]
    if not weights and not ("params.json" in names and "config.json" not in names):
        return None
    what = ", ".join([*(["params.json"] if "params.json" in names else []), *weights[:1]])
    return (
        f"holds a model in its publisher's own form ({what}), which is not read; "
        f"get its Hugging Face form ({_PUBLISHED_FORM}) from the same repository, or a .gguf file of it"
    )


def _pipeline(directory: Path, names: Sequence[str]) -> str | None:
    if "model_index.json" not in names:
        return None
    return "is a pipeline of diffusers (model_index.json), no language model; give the directory of a language model"


def _nested(directory: Path, names: Sequence[str]) -> str | None:
    """A model of sentence-transformers whose transformer has a directory of its own."""
    if "modules.json" not in names:
        return None
    inner = next((name for name in names if (directory / name / "config.json").is_file()), None)
    remedy = f"give {directory / inner}" if inner is not None else f"get {_PUBLISHED_FORM} of its transformer"
    return f"is a model of sentence-transformers (modules.json) without a transformer of its own; {remedy}"


def _pickled(directory: Path, names: Sequence[str]) -> str | None:
    found = [name for name in names if name.endswith(PICKLES)]
    if not found:
        return None
    line = f"holds pickled weights ({found[0]}), which are never read"
    loadable = "config.json" in names and any(name.startswith("pytorch_model") for name in found)
    if not loadable:
        return f"{line}; get {_PUBLISHED_FORM} of the same model"
    return f"{line}; write safetensors beside them, if you trust them: {conversion_command(directory)}"


def _other_library(directory: Path, names: Sequence[str]) -> str | None:
    for name in names:
        library = _OTHER_LIBRARIES.get(Path(name).suffix)
        if library is not None:
            return f"holds weights of {library} ({name}), which are not read; get {_PUBLISHED_FORM} of the same model"
    return None


def _safetensors(directory: Path, names: Sequence[str]) -> str | None:
    found = [name for name in names if name.lower().endswith(_SAFETENSORS)]
    if not found:
        return None
    if "config.json" not in names:
        return f"holds {found[0]} without config.json; download config.json and the tokenizer's files too"
    if len(found) == 1 and "-of-" not in found[0]:
        return f"holds {found[0]}, but no model.safetensors; rename it if it holds the whole model"
    return f"holds {found[0]}, but no model.safetensors.index.json; download the index too"
