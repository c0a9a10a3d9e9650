"""Write docs/recipes.md and docs/recipes.zh-CN.md, the reference of every field of a recipe, from the specs.

`python docs/recipe_reference.py` from the repository's root; with --check nothing is written, and the exit code says
whether anything would change.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from fathom.locale import ENGLISH
from fathom.spec.data import Manifest
from fathom.spec.field_docs import FieldDoc, all_specs, field_docs, kind_of, specs_in
from fathom.spec.field_translations import field_doc_in, summary_in
from fathom.spec.model import ModelSpec
from fathom.spec.recipe import Recipe, Step

DOCS = Path(__file__).resolve().parent
_ENGLISH: Mapping[str, str] = {
    "title": "Recipes: every field",
    "other": "*English | [中文](recipes.zh-CN.md)*",
    "intro": "A recipe is a TOML file: a model, and steps in order. `fathom recipe fields PATH` shows a part of this "
    "page in a terminal, for instance `fathom recipe fields model.attention` or `fathom recipe fields grpo.policy`. "
    "Editors that know TOML schemas complete and check recipes with `#:schema ./recipe.schema.json` in the first "
    "line; `fathom recipe schema > recipe.schema.json` writes that file. [recipes/](../recipes) holds examples that "
    "run.",
    "defaults": "Some fields follow others where they are left out: the "
    "names of steps their kinds (`train`, `train-2`), `model.name` the recipe's `name`, "
    "`model.vocab_size` the tokenizer step, `model.max_position_embeddings` the `sequence_length` of the first train "
    "step, and what a family is known for its `family` (for `deepseek_v2` MLA in V2's proportions from `num_heads` "
    "alone, interleaved rotary pairs, two shared experts, one dense layer, device-limited routing and the three "
    "balance losses; for "
    "`deepseek_v3` sigmoid scores, the selection bias and node-limited routing). Given fields win.",
    "Recipe": "The recipe",
    "Model": "The model",
    "Steps": "Steps",
    "Parts": "Parts of steps",
    "Manifest": "Manifests: where text comes from",
    "head": "| field | type | default | meaning |",
    "required": "*required*",
    "none": "—",
    "unit": "Unit",
    "paper": "Paper",
    "example": "Example",
    "colon": ": ",
    "within": "Where",
    "nothing": "It has no fields.",
}
_CHINESE: Mapping[str, str] = {
    "title": "配方：全部字段",
    "other": "*[English](recipes.md) | 中文*",
    "intro": "配方是一个 TOML 文件：一个模型，以及按顺序执行的步骤。`fathom recipe fields 路径` 在终端中显示本页"
    "的一部分，例如 "
    "`fathom recipe fields model.attention` 或 `fathom recipe fields grpo.policy`。支持 TOML schema 的编辑器在首行有 "
    "`#:schema ./recipe.schema.json` 时会补全并检查配方；`fathom recipe schema > recipe.schema.json` 写出该文件。"
    "[recipes/](../recipes) 中有可以直接运行的例子。",
    "defaults": "有些字段不给出时由其他字段决定：步骤名称取其 kind（`train`、`train-2`），"
    "`model.name` 取配方的 `name`，"
    "`model.vocab_size` 取分词器步骤的值，"
    "`model.max_position_embeddings` 取第一个训练步骤的 `sequence_length`，模型系列的特征由 `family` 决定（"
    "`deepseek_v2`："
    "只由 `num_heads` 决定的 V2 比例的 MLA、"
    "交错的旋转对、两个共享专家、一个稠密层、设备受限路由和三种均衡损失；`deepseek_v3`：sigmoid 打分、"
    "选择偏置和节点受限路由）。明确给出的字段优先。",
    "Recipe": "配方",
    "Model": "模型",
    "Steps": "步骤",
    "Parts": "步骤的组成部分",
    "Manifest": "清单：文本来自何处",
    "head": "| 字段 | 类型 | 默认值 | 含义 |",
    "required": "*必填*",
    "none": "—",
    "unit": "单位",
    "paper": "论文",
    "example": "示例",
    "colon": "：",
    "within": "位置",
    "nothing": "没有字段。",
}

WORDS: Mapping[str, Mapping[str, str]] = {ENGLISH: _ENGLISH, "zh_CN": _CHINESE}


def page(language: str) -> str:
    """Return the reference in English, or in a language of ``fathom/locale``."""
    words = WORDS[language]
    model = all_specs(ModelSpec)
    recipe = [spec for spec in all_specs(Recipe) if spec not in model and spec is not Recipe]
    steps = [spec for spec in recipe if spec in get_args(Step)]
    parts = [spec for spec in recipe if spec not in steps]
    sources = [spec for spec in all_specs(Manifest) if spec not in recipe and spec not in model]
    where = _places()
    lines = [f"# {words['title']}", "", words["other"], "", words["intro"], "", words["defaults"], ""]
    lines += ["<!-- made by docs/recipe_reference.py -->", ""]
    for title, specs in (("Recipe", [Recipe]), ("Model", model), ("Steps", steps), ("Parts", parts)):
        lines += [f"## {words[title]}", ""]
        for spec in specs:
            lines += _table(spec, where, words, language)
    lines += [f"## {words['Manifest']}", ""]
    for spec in sources:
        lines += _table(spec, where, words, language)
    return "\n".join(lines).rstrip("\n") + "\n"


def _places() -> dict[type, list[str]]:
    """Return the fields that hold each spec, the shortest paths first."""
    found: dict[type, list[str]] = {}

    def walk(path: str, spec: type, depth: int) -> None:
        for name, doc in field_docs(spec).items():
            inner = specs_in(doc.hint)
            for each in inner:
                kind = f".{kind_of(each)}" if len(inner) > 1 else ""
                below = f"{path}.{name}{kind}" if path else f"{name}{kind}"
                found.setdefault(each, []).append(below)
                if depth < 8:
                    walk(below, each, depth + 1)

    walk("", Recipe, 0)
    walk("", Manifest, 0)
    return {spec: sorted(paths, key=lambda path: (path.count("."), path)) for spec, paths in found.items()}


def _table(spec: type, where: dict[type, list[str]], words: Mapping[str, str], language: str) -> list[str]:
    kind, paths = kind_of(spec), where.get(spec, [])
    about = _cell(summary_in(spec, language))
    lines = [f"### {spec.__name__}" + (f': `kind = "{kind}"`' if kind else ""), "", about, ""]
    if paths:
        more = "" if len(paths) <= 3 else ", ..."
        lines += [f"{words['within']}{words['colon']}{', '.join(f'`{path}`' for path in paths[:3])}{more}", ""]
    docs = field_docs(spec)
    if not docs:
        return [*lines, words["nothing"], ""]
    lines += [words["head"], "|---|---|---|---|"]
    lines += [_row(field_doc_in(doc, language), words) for doc in docs.values()]
    return [*lines, ""]


def _row(doc: FieldDoc, words: Mapping[str, str]) -> str:
    parts = [_cell(doc.meaning)]
    labelled = (("unit", doc.unit), ("paper", doc.paper))
    parts += [f"{words[label]}{words['colon']}{_cell(text)}" for label, text in labelled if text]
    if doc.example is not None:
        parts.append(f"{words['example']}{words['colon']}`{_cell(doc.example)}`")
    default = words["required"] if doc.required else words["none"] if doc.default is None else f"`{_cell(doc.default)}`"
    return f"| `{doc.name}` | {_cell(doc.type)} | {default} | {'<br>'.join(parts)} |"


def _cell(text: str) -> str:
    """Return a text as it may stand in a cell of a table: double backticks of docstrings become single ones."""
    return text.replace("``", "`").replace("|", "\\|").replace("<think>", "`<think>`").replace("<answer>", "`<answer>`")


PAGES: Mapping[str, str] = {"recipes.md": ENGLISH, "recipes.zh-CN.md": "zh_CN"}


def main() -> int:
    """Write both pages, or say with --check whether they would change."""
    changed = 0
    for name, language in PAGES.items():
        path, text = DOCS / name, page(language)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        changed += 1
        if "--check" in sys.argv:
            print(f"{name} would change")
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
    return changed if "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
