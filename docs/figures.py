"""The READMEs' tables of speed and memory, made from the JSON under benchmarks/results, in English or Chinese."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks/results"
FORMS = {"float32": "float32 / F32", "int8": "int8 / Q8_0", "int4": "int4 / Q4_0", "file": "Q4_1"}
"""How a row names the form that both read the same file in."""
SHAPES = {"smollm2": "SmolLM2-135M"}


class Words(NamedTuple):
    """A language's names of what was measured; fields in braces are a result's."""

    engines: str
    decode: str
    prompt: str
    start: str
    measured: str
    train: str
    memory: str
    beyond: str
    prefix: str
    http: str
    rollouts: str
    texts: str
    foot: str


ENGLISH = Words(
    engines="| tokens/s through the engine, drawing included | Fathom | llama.cpp | transformers, float32 "
    "| Fathom / llama.cpp | Fathom / transformers |\n|---|---|---|---|---|---|",
    decode="Decoding, {shape}, batch {batch}, context {context:,}, {form}",
    prompt="Reading a prompt of {context:,} tokens, {shape}, {form}",
    start="From starting Python to the first token of SmolLM2-135M's GGUF file, seconds",
    measured="| measured | Fathom | transformers | ratio |\n|---|---|---|---|",
    train="Training step, shape {shape}, {batch} x {length} tokens, tokens/s",
    memory="the same, peak memory of the process, MiB",
    beyond="Reading a prompt of {context:,} tokens, {shape}, float32: memory beyond the model, MiB",
    prefix="Time to the first token after a cached prefix of {context} tokens, share of the first time",
    http="Through HTTP, {streams} streams of {model}, share of the engine's own tokens/s",
    rollouts="GRPO step of the quickstart, answers a minute, with the native step / without",
    texts="SmolLM2-135M's Q4_1 file, greedy texts of {tokens} tokens after {prompts} prompts: equal to llama.cpp's "
    "(to those of float32 activations: Fathom {ours}, llama.cpp {theirs})",
    foot="The same weights, alternating rounds of one run on {processor} ({threads} threads), medians; shapes are "
    "`bench-t` to `bench-m` of `fathom models`, beside llama.cpp with compressed queries. llama.cpp is "
    "llama-cpp-python 0.3.36 built for this processor, with its float32 or float16 cache, whichever was faster. "
    "`make bench` repeats it here; the JSON lies in [`benchmarks/results`](benchmarks/results).",
)
CHINESE = Words(
    engines="| 经过引擎的词元/秒，包含采样 | Fathom | llama.cpp | transformers，float32 "
    "| Fathom / llama.cpp | Fathom / transformers |\n|---|---|---|---|---|---|",
    decode="解码，{shape}，批量 {batch}，上下文 {context:,}，{form}",
    prompt="读入 {context:,} 个词元的提示，{shape}，{form}",
    start="SmolLM2-135M 的 GGUF 文件，从启动 Python 到第一个词元，秒",
    measured="| 测量 | Fathom | transformers | 比值 |\n|---|---|---|---|",
    train="训练一步，形状 {shape}，{batch} x {length} 个词元，词元/秒",
    memory="同上，进程的内存峰值，MiB",
    beyond="读入 {context:,} 个词元的提示，{shape}，float32：模型之外的内存，MiB",
    prefix="命中 {context} 个词元的前缀缓存后，首个词元所需时间占第一次的比例",
    http="经过 HTTP，{model} 的 {streams} 路流式输出，占引擎自身词元/秒的比例",
    rollouts="快速上手的 GRPO 步骤，每分钟的回答数，使用原生步 / 不使用",
    texts="SmolLM2-135M 的 Q4_1 文件，{prompts} 个提示后各 {tokens} 个词元的贪心文本：与 llama.cpp 相同的数目"
    "（与 float32 激活的文本相同：Fathom {ours}，llama.cpp {theirs}）",
    foot="相同的权重，在 {processor}（{threads} 线程）上同一次运行的交替轮次，取中位数；"
    "形状是 `fathom models` 中的 `bench-t` 到 `bench-m`，与 llama.cpp 比较时使用压缩查询。"
    "llama.cpp 是为此处理器构建的 llama-cpp-python 0.3.36，在其 float32 与 float16 缓存中取较快者。"
    "`make bench` 在你的机器上重复测量；JSON 在 [`benchmarks/results`](benchmarks/results)。",
)


def figures(words: Words) -> str:
    """Return the tables of all results in one language: beside llama.cpp, and what is measured otherwise."""
    found = list(_results())
    engines = [row for result in found for row in _engine_rows(result, words)]
    others = [row for result in found for row in _other_rows(result, words)]
    tables = [words.engines, *engines, "", words.measured, *others]
    return "\n".join(tables) + "\n\n" + words.foot.format(**found[-1]["machine"])


def _results() -> Iterator[dict[str, Any]]:
    for path in sorted(RESULTS.glob("*-cpu.json"), key=_order):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "shape" in result:
            result["shape"] = SHAPES.get(result["shape"], result["shape"].upper())
        yield result


def _order(path: Path) -> list[tuple[int, str]]:
    """Numbers in a name by their value."""
    parts = path.stem.replace("batch", "batch-").replace("context", "context-").split("-")
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _engine_rows(result: dict[str, Any], words: Words) -> list[str]:
    """Return a result's rows of Fathom beside llama.cpp."""
    name = result["benchmark"]
    if name.startswith("load-"):
        median, times = result["median"], result["times"]
        cells = [f"{median[peer]['seconds']:.1f}" for peer in ("fathom", "llama.cpp", "transformers")]
        cells += [f"{times[peer]['seconds']:.2f} x" for peer in ("llama.cpp", "transformers")]
        return [f"| {words.start} | {' | '.join(cells)} |"]
    if not name.startswith("native-decode-") and not name.startswith("native-prompt-"):
        return []
    what = words.decode if name.startswith("native-decode-") else words.prompt
    speed, rows = result["per_second"], []
    for form, ratio in result["times_llama_cpp"].items():
        theirs = max(value for peer, value in speed.items() if peer.startswith(f"llama.cpp {form},"))
        beside = result["times_transformers"].get(form)
        cells = [f"{speed[f'fathom {form}']:,.0f}", f"{theirs:,.0f}"]
        cells += [
            f"{speed['transformers']:,.0f}" if beside else "",
            f"{ratio:.2f} x",
            f"{beside:.2f} x" if beside else "",
        ]
        rows.append(f"| {what.format(**result, form=FORMS[form])} | {' | '.join(cells)} |")
    return rows


def _other_rows(result: dict[str, Any], words: Words) -> list[str]:
    """Return a result's rows of Fathom beside transformers, or alone."""
    name = result["benchmark"]
    if name.startswith("train-"):
        mib = {peer: memory["peak_mib"] for peer, memory in result["memory"].items()}
        return [_compared(words.train, result), _peaks(words.memory, mib)]
    if name.startswith("serve-prefill-"):
        return [_peaks(words.beyond.format(**result), result["peak_mib_beyond_model"])]
    if name.startswith("serve-prefix-"):
        return [f"| {words.prefix.format(**result)} | {result['warm_over_cold']:.1%} | | |"]
    if name.startswith("serve-http-"):
        return [f"| {words.http.format(**result)} | {result['share']:.1%} | | |"]
    if name.startswith("rollouts-"):
        native, modules = (result["contestants"][one]["answers_per_minute"] for one in ("native", "modules"))
        return [f"| {words.rollouts} | {native:,.0f} / {modules:,.0f} | | {result['times']:.2f} x |"]
    if name.startswith("llama-texts-"):
        equal = result["equal"]
        what = words.texts.format(**result, ours=equal["fathom, exact"], theirs=equal["llama.cpp, exact"])
        return [f"| {what} | {equal['fathom, llama.cpp']} | | |"]
    return []


def _compared(what: str, result: dict[str, Any]) -> str:
    """Return a row of speed beside transformers'."""
    speed, ratio = result["per_second"], result["times_peer"]["fathom"]
    return f"| {what.format(**result)} | {speed['fathom']:,.0f} | {speed['transformers']:,.0f} | {ratio:.2f} x |"


def _peaks(what: str, mib: dict[str, float]) -> str:
    """Return a row of two peaks of memory."""
    ours, theirs = mib["fathom"], mib["transformers"]
    return f"| {what} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} x |"
