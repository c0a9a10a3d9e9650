"""Folders and files of text to train on, as people have them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fathom.data.folders.documents import FolderReading
from fathom.errors import FathomError
from fathom.spec.data import FolderSource
from tests.compatibility.case import Case, Outcome, Status

_ROWS = [{"text": f"text {n}", "n": n} for n in range(3)]
_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS)


_Content = str | bytes | Callable[[Path], object]


def _parquet(rows: list[dict[str, Any]]) -> _Content:
    return lambda path: pq.write_table(pa.Table.from_pylist(rows), path)


def _reads(files: Mapping[str, _Content], name: str = "", **fields: Any) -> Callable[[Path], Outcome]:
    """A case that reads a folder of such files, or the one called ``name`` of them."""

    def run(folder: Path) -> Outcome:
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        reading = FolderReading(FolderSource(name="mine", path=str(folder / name), **fields))
        try:
            count = sum(1 for _ in reading)
        except FathomError as error:
            return Outcome("refused", _shown(str(error), folder))
        lines = "; ".join(reading.left_out.lines())
        documents = "1 document" if count == 1 else f"{count} documents"
        return Outcome("works", _shown(f"{documents}; {lines}" if lines else documents, folder))

    return run


def _shown(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), ".")


def _link(target: str) -> _Content:
    return lambda path: path.symlink_to(target)


def _case(what: str, zh: str, run: Callable[[Path], Outcome], *, expected: Status = "works", source: str = "") -> Case:
    return Case(what=what, zh=zh, run=run, expected=expected, source=source)


_CARD = "---\nlicense: mit\n---\n# A data set\n"
_CLONE: Mapping[str, _Content] = {
    "README.md": _CARD,
    ".gitattributes": "*.parquet filter=lfs\n",
    "dataset_infos.json": "{}",
    "data/train-00000-of-00001.parquet": _parquet(_ROWS),
    "data/extra.jsonl.gz": gzip.compress(_LINES.encode()),
}
_CUT = gzip.compress("".join(json.dumps({"text": str(n**3)}) + "\n" for n in range(9000)).encode())[:30_000]


def _cut_short(folder: Path) -> Outcome:
    outcome = _reads({"a.jsonl.gz": _CUT})(folder)
    before, *told = outcome.detail.split("; ")
    ended = told[0].partition(": cut short")[1]
    return Outcome(outcome.status, "the records before the cut; the cut is named" if ended else before)


CASES: tuple[Case, ...] = (
    _case(
        "a clone of a data set with README, Parquet and .jsonl.gz",
        "数据集仓库的克隆：README、Parquet 与 .jsonl.gz",
        _reads(_CLONE),
        source="NVIDIA-NeMo/Automodel#923",
    ),
    _case(
        "a test split beside the training split",
        "训练集旁边的测试集",
        _reads({"data/train-0.jsonl": _LINES, "data/test-0.jsonl": _LINES}),
    ),
    _case(
        "`<|endoftext|>` between documents of a text file",
        "文本文件中以 `<|endoftext|>` 分隔的文档",
        _reads({"a.txt": "Once.\n<|endoftext|>\nTwice.\n<|endoftext|>\n"}),
    ),
    _case("lines of JSON", "JSON Lines 文件", _reads({"a.jsonl": _LINES})),
    _case("lines of JSON, .ndjson", "后缀为 .ndjson 的 JSON Lines 文件", _reads({"a.NDJSON": _LINES})),
    _case("an array of JSON objects", "JSON 对象数组", _reads({"a.json": json.dumps(_ROWS, indent=1)})),
    _case("an array in a .jsonl file", ".jsonl 文件里其实是一个 JSON 数组", _reads({"a.jsonl": json.dumps(_ROWS)})),
    _case("a CSV file with a column text", "含 text 列的 CSV 文件", _reads({"a.csv": "text,n\r\na,1\r\nb,2\r\n"})),
    _case("Parquet", "Parquet 文件", _reads({"a.parquet": _parquet(_ROWS)})),
    _case(
        ".jsonl.gz",
        ".jsonl.gz 压缩文件",
        _reads({"a.jsonl.gz": gzip.compress(_LINES.encode())}),
        source="stanford-crfm/levanter#763",
    ),
    _case(".jsonl.zst", ".jsonl.zst 压缩文件", _reads({"a.jsonl.zst": zstandard.compress(_LINES.encode())})),
    _case(".jsonl.bz2", ".jsonl.bz2 压缩文件", _reads({"a.jsonl.bz2": bz2.compress(_LINES.encode())})),
    _case(".txt.xz", ".txt.xz 压缩文件", _reads({"a.txt.xz": lzma.compress(b"text")})),
    _case(
        "a column content or raw_content",
        "正文列名为 content 或 raw_content",
        _reads({"a.jsonl": '{"raw_content": "a"}\n{"content": "b"}\n'}),
    ),
    _case(
        "another column, named by text_column",
        "其他列名，用 text_column 指定",
        _reads({"a.parquet": _parquet([{"story": "a", "n": 1}])}, text_column="story"),
    ),
    _case(
        "Parquet without a column of text",
        "没有正文列的 Parquet 文件",
        _reads({"a.parquet": _parquet([{"prompt": "a", "n": 1}])}),
        expected="refused",
    ),
    _case(
        "one bad line in a .jsonl file",
        ".jsonl 文件中有一行损坏",
        _reads({"a.jsonl": _LINES + '{"text": "cut\n' + _LINES}),
    ),
    _case("a truncated .jsonl.gz", "下载不完整的 .jsonl.gz", _cut_short),
    _case("UTF-16 with a byte order mark", "带 BOM 的 UTF-16 文本", _reads({"a.txt": "text".encode("utf-16")})),
    _case(
        "GB18030, declared",
        "声明了编码的 GB18030 文本",
        _reads({"a.txt": "河水".encode("gb18030")}, encoding="gb18030"),
    ),
    _case(
        "a file in another encoding, undeclared",
        "未声明编码的非 UTF-8 文件",
        _reads({"a.txt": "河水".encode("gb18030"), "b.txt": "text"}),
    ),
    _case(
        "empty and binary files",
        "空文件与二进制文件",
        _reads({"a.txt": "", "b.md": b"\0\1", "c.png": b"\0", "d.rst": "text"}),
    ),
    _case(
        "code with settings and installed packages",
        "带配置文件和已安装依赖的代码目录",
        _reads({"main.ts": "export {}", "package.json": "{}", "node_modules/x/index.js": "no"}),
    ),
    _case(
        "a folder and a file behind symbolic links",
        "符号链接指向的目录与文件",
        _reads({"real/a.txt": "a", "linked": _link("real"), "b.txt": _link("real/a.txt")}),
    ),
    _case(
        "a symbolic link to a folder above it",
        "指向上级目录的符号链接",
        _reads({"a.txt": "a", "sub/back": _link("..")}),
        expected="refused",
    ),
    _case("a symbolic link to nothing", "失效的符号链接", _reads({"a.txt": "a", "b.txt": _link("nowhere")})),
    _case(
        "a decompression bomb",
        "解压炸弹",
        _reads({"a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(bytes(80_000_000)))}),
        expected="refused",
    ),
    _case(
        "a snapshot in the hub's cache, all links",
        "Hugging Face 缓存中全是符号链接的快照目录",
        _reads({"blobs/1a2b": _LINES, "snapshots/0f/train.jsonl": _link("../../blobs/1a2b")}),
    ),
    _case(
        "a clone whose files are pointers of Git LFS",
        "只含 Git LFS 指针的克隆",
        _reads({"README.md": _CARD, "a.parquet": "version https://git-lfs.github.com/spec/v1\n"}),
        expected="refused",
    ),
    _case("a folder without text", "没有任何文本的目录", _reads({"a.png": b"\0"}), expected="refused"),
)
