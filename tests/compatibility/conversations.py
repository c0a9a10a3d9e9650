"""Data for post-training as published: conversations, preferences and problems, and what ``fathom inspect`` says."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fathom.data.conversations import encode_conversations, read_conversations
from fathom.data.forms import AS_FOUND, Columns
from fathom.data.problems.files import open_file
from fathom.data.row_report import RowReport
from fathom.errors import DataError
from fathom.pipeline.data_inspection import inspect_data
from fathom.posttrain.preferences import read_preferences
from fathom.posttrain.rewards.accuracy import AccuracyScorer
from fathom.posttrain.rewards.base import RewardInput
from fathom.spec.problem import FileProblems
from fathom.tokenizer import train_bpe
from tests.compatibility.case import Case, Outcome

Row = Mapping[str, Any]
USER, RIGHT, WRONG = (
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "assistant", "content": "6"},
)
SHAREGPT = [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]
CALL = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
TOOL = {"name": "add", "parameters": {"type": "object"}}


def _jsonl(folder: Path, rows: Sequence[Row | str], name: str = "rows.jsonl") -> Path:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / name).write_text(lines, encoding="utf-8")
    return folder / name


def _array(folder: Path, rows: Sequence[Row | str]) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def _gzip(folder: Path, rows: Sequence[Row | str]) -> Path:
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(_jsonl(folder, rows).read_bytes()))
    return folder / "rows.jsonl.gz"


def _zstd(folder: Path, rows: Sequence[Row | str]) -> Path:
    (folder / "rows.jsonl.zst").write_bytes(zstandard.compress(_jsonl(folder, rows).read_bytes()))
    return folder / "rows.jsonl.zst"


def _parquet(folder: Path, rows: Sequence[Row | str]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "rows.parquet")
    return folder / "rows.parquet"


def _told(error: DataError, folder: Path) -> Outcome:
    """Return what was said of the file, or of its first row where no row is left."""
    line = str(error).replace(f"{folder}/", "")
    of_row = line.partition(" can be used (")[2]
    return Outcome("refused", of_row.rpartition("); ")[0] if of_row else line.partition("; known are")[0])


def _learned(
    folder: Path, row: Row | Sequence[Row | str], columns: Columns = AS_FOUND, write: Callable[..., Path] = _jsonl
) -> Outcome:
    """Encode a file's conversations and say what is in the loss."""
    report = RowReport()
    rows = [row] if isinstance(row, Mapping) else list(row)
    tokenizer = train_bpe(["2 + 3? 5 and 6 is add wrong.\n" * 4], vocab_size=330)
    try:
        found = list(read_conversations(write(folder, rows), report, columns))
        samples = encode_conversations(tokenizer, found, report, max_tokens=2000)
    except DataError as error:
        return _told(error, folder)
    ids = [token for token, on in zip(samples[0].tokens, samples[0].learned, strict=True) if on]
    skipped = f"; {report.lines()[1]}" if report.problems else ""
    return Outcome("works", f"in the loss: {' '.join(tokenizer.decode(ids).split())}{skipped}")


def _paired(folder: Path, row: Row, write: Callable[..., Path] = _jsonl) -> Outcome:
    report = RowReport()
    try:
        pairs = list(read_preferences(write(folder, [row]), report))
    except DataError as error:
        return _told(error, folder)
    if not pairs:
        return Outcome("refused", report.lines("pairs")[1].partition(": ")[2].partition(": ")[2])
    return Outcome("works", f"chosen {pairs[0].chosen['content']}, rejected {pairs[0].rejected['content']}")


def _judged(folder: Path, row: Row, write: Callable[..., Path] = _jsonl) -> Outcome:
    """Judge a right and a wrong answer to a file's problem."""
    try:
        opened = open_file(FileProblems(path=str(write(folder, [{**row, "split": "train"}]))), folder)
    except DataError as error:
        return _told(error, folder)
    (problem,) = opened.problems("train", 0, 1)
    scorer = AccuracyScorer("auto")
    right, wrong = (scorer.score(RewardInput(prompt="", answer=said, problem=problem)) for said in ("5", "6"))
    return Outcome("works" if (right, wrong) == (1.0, 0.0) else "refused", f"the answer is {problem.answer}")


def _trained_on_test(folder: Path) -> Outcome:
    path = _jsonl(folder, [GSM8K], "test-00000-of-00001.jsonl")
    try:
        open_file(FileProblems(path=str(path), name="gsm8k"), folder).problems("train", 0, 1)
    except DataError as error:
        return _told(error, folder)
    return Outcome("works", "trained on")


def _inspected(folder: Path, row: Row) -> Outcome:
    found = inspect_data(_jsonl(folder, [row]))
    uses = [f"{use['kind']}: {use['format']}" for use in found["uses"]]
    choices = [f"{choice['kind']}: {choice['format']}" for choice in found["choices"]]
    return Outcome("works", "; ".join([*uses, *(["to be chosen, " + ", ".join(choices)] if choices else [])]))


def _case(what: str, zh: str, run: Callable[[Path], Outcome], source: str = "", expected: Any = "works") -> Case:
    return Case(what=what, zh=zh, expected=expected, run=run, source=source)


MESSAGES = {"messages": [USER, RIGHT]}
TALK = [USER, WRONG, USER, RIGHT]
GSM8K = {"question": "2 + 3?", "answer": "We add: 2+3=<<2+3=5>>5.\n#### 5"}
_CALLED = [
    {"from": "human", "value": "2 + 3?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "5"},
    {"from": "gpt", "value": "5"},
]
_LEGACY = [
    USER,
    {"role": "assistant", "content": None, "function_call": CALL},
    {"role": "function", "name": "add", "content": "5"},
    RIGHT,
]

CASES = (
    _case("SFT: OpenAI messages", "SFT：OpenAI 消息格式", partial(_learned, row=MESSAGES)),
    _case(
        "SFT: `weight: 0` on an assistant turn",
        "SFT：助手轮次带 `weight: 0`",
        partial(_learned, row={"messages": [USER, {**WRONG, "weight": 0}, USER, RIGHT]}),
        "axolotl-ai-cloud/axolotl#1703",
    ),
    _case(
        "SFT: `train: false` on a turn (axolotl)",
        "SFT：轮次带 `train: false`（axolotl）",
        partial(_learned, row={"messages": [USER, {**WRONG, "train": False}, USER, RIGHT]}),
    ),
    _case(
        "SFT: a `weight` that is neither 0 nor 1",
        "SFT：`weight` 既不是 0 也不是 1",
        partial(_learned, row={"messages": [USER, {**RIGHT, "weight": 0.5}]}),
        expected="refused",
    ),
    _case(
        "SFT: legacy `function_call` and `functions`",
        "SFT：旧式 `function_call` 与 `functions`",
        partial(_learned, row={"messages": _LEGACY, "functions": [TOOL]}),
    ),
    _case(
        "SFT: ShareGPT `conversations`",
        "SFT：ShareGPT 的 `conversations`",
        partial(_learned, row={"conversations": SHAREGPT}),
        "unslothai/unsloth#321",
    ),
    _case(
        "SFT: ShareGPT with calls, observations and tools as JSON text (LLaMA-Factory)",
        "SFT：ShareGPT 含工具调用、观测，工具为 JSON 文本（LLaMA-Factory）",
        partial(_learned, row={"conversations": _CALLED, "tools": json.dumps([TOOL])}),
    ),
    _case(
        "SFT: Alpaca instructions",
        "SFT：Alpaca 指令",
        partial(_learned, row={"instruction": "2 + 3?", "input": "", "output": "5"}),
        "unslothai/unsloth#321",
    ),
    _case(
        "SFT: prompt and completion as texts",
        "SFT：文本形式的 prompt 与 completion",
        partial(_learned, row={"prompt": "2 + 3?", "completion": "5"}),
    ),
    _case(
        "SFT: prompt and completion as messages (TRL)",
        "SFT：消息形式的 prompt 与 completion（TRL）",
        partial(_learned, row={"prompt": TALK[:3], "completion": TALK[3:]}),
    ),
    _case("SFT: a JSON array", "SFT：JSON 数组", partial(_learned, row=MESSAGES, write=_array)),
    _case("SFT: `.jsonl.gz`", "SFT：`.jsonl.gz` 压缩文件", partial(_learned, row=MESSAGES, write=_gzip)),
    _case("SFT: `.jsonl.zst`", "SFT：`.jsonl.zst` 压缩文件", partial(_learned, row=MESSAGES, write=_zstd)),
    _case("SFT: Parquet", "SFT：Parquet 文件", partial(_learned, row=MESSAGES, write=_parquet)),
    _case(
        "SFT: columns of one's own named by `fields`",
        "SFT：用 `fields` 指明自定义列",
        partial(_learned, row={"q": "2 + 3?", "a": "5"}, columns=Columns(fields={"prompt": "q", "completion": "a"})),
    ),
    _case(
        "SFT: a row of another form among messages",
        "SFT：消息格式的文件中混入其他格式的行",
        partial(_learned, row=[MESSAGES, {"prompt": "2 + 3?", "completion": "5"}]),
    ),
    _case(
        "SFT: columns that fit two forms",
        "SFT：列同时符合两种格式",
        partial(_learned, row={**MESSAGES, "prompt": "2 + 3?", "completion": "5"}),
        expected="refused",
    ),
    _case(
        "SFT: questions and answers without `format`",
        "SFT：未指定 `format` 的问答列",
        partial(_learned, row={"question": "2 + 3?", "answer": "5"}),
        expected="refused",
    ),
    _case(
        "SFT: Parquet without a column that is known",
        "SFT：没有可识别列的 Parquet",
        partial(_learned, row={"a": 1, "b": 2}, write=_parquet),
        expected="refused",
    ),
    _case(
        "SFT: `conversation` of pairs `human`, `assistant` (Firefly)",
        "SFT：`conversation` 为 `human`、`assistant` 成对（Firefly）",
        partial(_learned, row={"conversation": [{"human": "2 + 3?", "assistant": "5"}], "dataset": "moss"}),
    ),
    _case(
        "SFT: a query answered by calls (xLAM)",
        "SFT：以工具调用作答的 query（xLAM）",
        partial(_learned, row={"query": "2 + 3?", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])}),
    ),
    _case(
        "SFT: trees of messages (OpenAssistant)",
        "SFT：消息树（OpenAssistant）",
        partial(_learned, row={"message_tree_id": "x", "prompt": {"text": "2 + 3?", "replies": []}}),
        expected="refused",
    ),
    _case(
        "SFT: an empty answer",
        "SFT：空的回答",
        partial(_learned, row={"messages": [USER, {**RIGHT, "content": ""}]}),
        expected="refused",
    ),
    _case(
        "preferences: TRL with a prompt",
        "偏好：TRL，带 prompt",
        partial(_paired, row={"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}),
    ),
    _case(
        "preferences: TRL with an implicit prompt",
        "偏好：TRL，隐式 prompt",
        partial(_paired, row={"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}),
    ),
    _case(
        "preferences: OpenAI",
        "偏好：OpenAI",
        partial(
            _paired,
            row={"input": {"messages": [USER]}, "preferred_output": [RIGHT], "non_preferred_output": [WRONG]},
        ),
    ),
    _case(
        "preferences: UltraFeedback binarized, as Parquet",
        "偏好：UltraFeedback 二元化，Parquet",
        partial(
            _paired,
            row={
                "prompt": "2 + 3?",
                "messages": [USER, RIGHT],
                "chosen": [USER, RIGHT],
                "rejected": [USER, WRONG],
                "score_chosen": 8.0,
                "score_rejected": 2.0,
            },
            write=_parquet,
        ),
    ),
    _case(
        "preferences: UltraFeedback completions with scores",
        "偏好：UltraFeedback 带评分的回答",
        partial(
            _paired,
            row={
                "instruction": "2 + 3?",
                "completions": [{"response": "6", "overall_score": 2}, {"response": "5", "overall_score": 9}],
            },
        ),
    ),
    _case(
        "preferences: Anthropic HH",
        "偏好：Anthropic HH",
        partial(
            _paired,
            row={"chosen": "\n\nHuman: 2 + 3?\n\nAssistant: 5", "rejected": "\n\nHuman: 2 + 3?\n\nAssistant: 6"},
        ),
    ),
    _case(
        "preferences: single answers with a label (KTO)",
        "偏好：带标签的单个回答（KTO）",
        partial(_paired, row={"prompt": "2 + 3?", "completion": "5", "label": True}),
        expected="refused",
    ),
    _case(
        "preferences: two answers that are the same",
        "偏好：两个回答相同",
        partial(_paired, row={"prompt": "2 + 3?", "chosen": "5", "rejected": "5"}),
        expected="refused",
    ),
    _case(
        "problems: GSM8K as published",
        "题目：GSM8K 发布格式",
        partial(_judged, row=GSM8K),
        "pytorch/rl#3542",
    ),
    _case("problems: GSM8K as Parquet", "题目：GSM8K，Parquet", partial(_judged, row=GSM8K, write=_parquet)),
    _case(
        "problems: MATH, the answer in `\\boxed{}`",
        "题目：MATH，答案在 `\\boxed{}` 中",
        partial(_judged, row={"problem": "2 + 3?", "solution": "It is $\\boxed{5}$.", "level": "Level 1"}),
    ),
    _case(
        "problems: open-r1 with a solution, an answer and further columns",
        "题目：open-r1，含解答、答案与其他列",
        partial(_judged, row={"problem": "2 + 3?", "solution": "Add.\nDone.", "answer": "5", "source": "x"}),
    ),
    _case(
        "problems: numbers as answers", "题目：答案为数值", partial(_judged, row={"question": "2 + 3?", "answer": 5.0})
    ),
    _case(
        "problems: verl",
        "题目：verl",
        partial(
            _judged,
            row={
                "data_source": "x",
                "prompt": [USER],
                "reward_model": {"style": "rule", "ground_truth": "5"},
                "extra_info": {"index": 0},
            },
        ),
    ),
    _case(
        "problems: TRL prompts with a `solution`",
        "题目：TRL 的 prompt 与 `solution`",
        partial(_judged, row={"prompt": [USER], "solution": "$\\boxed{5}$"}),
    ),
    _case(
        "problems: messages with `ground_truth` (Tülu 3)",
        "题目：消息与 `ground_truth`（Tülu 3）",
        partial(_judged, row={"messages": [USER], "ground_truth": "5", "dataset": "gsm8k"}),
    ),
    _case(
        "problems: a body before the question (SVAMP)",
        "题目：题干 Body 与问题分列（SVAMP）",
        partial(_judged, row={"Body": "Two and three.", "Question": "Sum?", "Answer": "5.0", "Type": "Addition"}),
    ),
    _case(
        "problems: answers in words without a final value",
        "题目：答案为长段文字，无最终值",
        partial(_judged, row={"question": "How?", "answer": "We add the two numbers that were given. " * 8}),
        expected="refused",
    ),
    _case(
        "problems: a file that is named after the test split",
        "题目：文件名为测试集（test）",
        _trained_on_test,
        expected="refused",
    ),
    _case(
        "problems: multiple choice with an index as its answer",
        "题目：答案为序号的选择题",
        partial(_judged, row={"question": "2 + 3?", "choices": ["5", "6"], "answer": 0}),
        expected="refused",
    ),
    _case(
        "`fathom inspect` of questions and answers",
        "对问答文件运行 `fathom inspect`",
        partial(_inspected, row=GSM8K),
    ),
    _case(
        "`fathom inspect` of columns that fit two forms",
        "对同时符合两种格式的文件运行 `fathom inspect`",
        partial(_inspected, row={**MESSAGES, "prompt": "2 + 3?", "completion": "5"}),
    ),
)
