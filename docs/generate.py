"""Fill the generated parts of the documents: `python docs/generate.py` from the repository's root.

In docs/*.md, a line `<!-- run: COMMAND -->` is followed by a fenced block that becomes the command and what it prints
(both streams, and its exit code where it is not 0). Each block runs once: PAGE.zh-CN.md has the markers of PAGE.md in
the same order and gets its blocks. Between `<!-- figures -->` and `<!-- /figures -->` the READMEs get a table made from
the JSON under benchmarks/results, and between `<!-- reached -->` and `<!-- /reached -->` what the quickstart reached;
`activations` and `losses` stand around the tables of what fewer bits cost.
With --check nothing is written: the exit code says whether anything would change. --only PATTERN
runs just the commands that contain it; without it exports/ is made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import figures

ROOT = Path(__file__).resolve().parent.parent
CHINESE = ".zh-CN"
RUN = re.compile(r"<!-- run: (?P<command>.+?) -->\n```console\n.*?```\n", re.DOTALL)
FIGURES = re.compile(r"<!-- figures -->\n.*?<!-- /figures -->", re.DOTALL)
REACHED = re.compile(r"<!-- reached -->\n.*?<!-- /reached -->", re.DOTALL)
ACTIVATIONS = re.compile(r"<!-- activations -->\n.*?<!-- /activations -->", re.DOTALL)
LOSSES = re.compile(r"<!-- losses -->\n.*?<!-- /losses -->", re.DOTALL)
PASSING = re.compile(r"about .+ left$|it/s\]$|, right \d+%$")
"""Lines of progress, which a document leaves out."""


def run_block(match: re.Match[str]) -> str:
    """Run a command and return its marker and block again."""
    command = match["command"]
    environment = os.environ | {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb", "FATHOM_LANG": "en"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        shlex.split(command), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines() if not PASSING.search(line)]
    printed = "\n".join(lines)
    code = f"\n(exit code {done.returncode})" if done.returncode else ""
    return f"<!-- run: {command} -->\n```console\n$ {command}\n{printed}{code}\n```\n"


def reached(corner: str) -> str:
    """Return the quickstart's accuracies in percent, a row a task and a column a stage, every seed's run in a cell."""
    path = ROOT / "benchmarks/results/recipe-quickstart.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    stages = list(next(iter(runs[0]["tasks"].values())))
    rows = [f"| {corner} | {' | '.join(f'`{stage}`' for stage in stages)} |", "|---" * (len(stages) + 1) + "|"]
    for task in runs[0]["tasks"]:
        cells = (" / ".join(f"{100 * run['tasks'][task][stage]['accuracy']:.0f}" for run in runs) for stage in stages)
        rows.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(rows)


LOSS_WORDS = {
    "": ("| model | kept in | bytes | bits per byte of text |", "weights {}", "cache {}", "{} bits per number"),
    CHINESE: ("| 模型 | 保存形式 | 字节 | 每字节文本的比特数 |", "权重 {}", "缓存 {}", "每个数 {} 比特"),
}
FORM_WORDS = {"": {}, CHINESE: {", groups of ": "，每组 ", ", head too": "，含输出头"}}


ACTIVATION_WORDS = {
    "": ("| model | weights | bytes | activations in 8 bits | in float32 |", "the file as it is ({})", "{} ({})"),
    CHINESE: ("| 模型 | 权重 | 字节 | 激活值 8 比特 | 激活值 float32 |", "文件原样（{}）", "{}（{}）"),
}


def activations(language: str) -> str:
    """Return what packed weights cost with both kinds of activations, a row a model and form."""
    head, whole, packed = ACTIVATION_WORDS[language]
    rows = [head, "|---|---|---|---|---|"]
    path = ROOT / "benchmarks/results/quantize-native-cpu.json"
    for model, forms in json.loads(path.read_text(encoding="utf-8"))["models"].items():
        for form, found in forms.items():
            name, rounded, exact = form.partition(",")[0], f"{found['bits_per_byte']:.4f}", ""
            if form == "as stored":
                name = whole.format(found["weights"])
            elif found["weights"] != "plain":
                name = packed.format(name, found["weights"])
            if found["weights"] == "plain":
                rounded, exact = "", rounded
            else:
                exact = f"{found['float32_activations']['bits_per_byte']:.4f}"
            rows.append(f"| {model} | {name} | {found['weight_bytes']:,} | {rounded} | {exact} |")
    return "\n".join(rows)


def losses(language: str) -> str:
    """Return what packed weights and packed caches cost, from the results there are."""
    head, weights, cache, bits = LOSS_WORDS[language]
    rows = [head, "|---|---|---|---|"]
    for path in sorted((ROOT / "benchmarks/results").glob("quantize-cpu.json")):
        for model, forms in json.loads(path.read_text(encoding="utf-8"))["models"].items():
            for form, found in forms.items():
                for words in FORM_WORDS[language].items():
                    form = form.replace(*words)
                kept = weights.format(form)
                rows.append(f"| {model} | {kept} | {found['weight_bytes']:,} | {found['bits_per_byte']:.4f} |")
    for path in sorted((ROOT / "benchmarks/results").glob("cache-loss-*-cpu.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for form, found in result["formats"].items():
            size = bits.format(f"{found['bits_per_number']:g}")
            rows.append(f"| {result['model']} | {cache.format(form)} | {size} | {found['bits_per_byte']:.4f} |")
    return "\n".join(rows)


def translation(path: Path) -> Path:
    """Return where the Chinese page of an English one lies."""
    return path.with_name(f"{path.stem}{CHINESE}.md")


def run_again(text: str, only: str) -> str:
    """Return a document whose blocks show what their commands print now."""
    return RUN.sub(lambda match: run_block(match) if only in match["command"] else match[0], text)


def with_blocks_of(text: str, english: str, name: str) -> str:
    """Return a Chinese page with the blocks of its English one; other or otherwise ordered commands end the program."""
    ours, theirs = ([match["command"] for match in RUN.finditer(page)] for page in (text, english))
    if ours != theirs:
        different = [f"{mine!r} for {other!r}" for mine, other in zip_longest(ours, theirs) if mine != other]
        raise SystemExit(f"{name}: other commands than in the English page: {', '.join(different)}")
    blocks = iter([match[0] for match in RUN.finditer(english)])
    return RUN.sub(lambda _: next(blocks), text)


def with_tables(text: str, name: str) -> str:
    """Return a document with the tables made from the results."""
    language = CHINESE if CHINESE in name else ""
    text = ACTIVATIONS.sub(lambda _: f"<!-- activations -->\n{activations(language)}\n<!-- /activations -->", text)
    text = LOSSES.sub(lambda _: f"<!-- losses -->\n{losses(language)}\n<!-- /losses -->", text)
    if name.startswith("README"):
        corner = {"": "right, %", CHINESE: "正确率，%"}[language]
        text = REACHED.sub(lambda _: f"<!-- reached -->\n{reached(corner)}\n<!-- /reached -->", text)
        made = (
            f"<!-- figures -->\n{figures.figures(figures.CHINESE if language else figures.ENGLISH)}\n<!-- /figures -->"
        )
        text = FIGURES.sub(lambda _: made, text)
    return text


def generated(path: Path, only: str) -> dict[Path, str]:
    """Return a document and its Chinese page with their generated parts made anew."""
    english = run_again(path.read_text(encoding="utf-8"), only)
    pages = {path: with_tables(english, path.name)}
    chinese = translation(path)
    if chinese.exists():
        text = with_blocks_of(chinese.read_text(encoding="utf-8"), english, chinese.name)
        pages[chinese] = with_tables(text, chinese.name)
    return pages


def main() -> int:
    """Write or check every document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    if not arguments.only:
        shutil.rmtree(ROOT / "exports", ignore_errors=True)
    stale = []
    documents = [path for path in sorted((ROOT / "docs").glob("*.md")) if CHINESE not in path.name]
    for document in [*documents, ROOT / "README.md"]:
        for path, text in generated(document, arguments.only).items():
            if text == path.read_text(encoding="utf-8"):
                continue
            stale.append(path.relative_to(ROOT).as_posix())
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    print("stale:" if arguments.check else "written:", ", ".join(stale) or "none")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
