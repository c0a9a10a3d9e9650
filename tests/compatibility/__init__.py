"""What other people hand over, and what Fathom does with it: the cases behind docs/compatibility.md.

`python -m tests.compatibility` runs them all and writes the page and its Chinese twin.
"""

from collections.abc import Mapping
from importlib import import_module

from tests.compatibility.case import Area

AREAS: Mapping[str, tuple[str, str]] = {
    # module: title, title in Chinese; a module defines CASES
    "names": ("Names", "名称"),
    "templates": ("Chat templates", "对话模板"),
    "configs": ("Configs and tokenizers", "模型配置与分词器"),
    "modelfiles": ("Model files", "模型文件"),
    "requests": ("Requests", "请求"),
    "apis": ("Responses and Messages", "Responses 与 Messages 接口"),
    "machines": ("Several models, embeddings, consoles and machines", "多模型、嵌入、控制台与机器环境"),
    "conversations": ("Data for post-training", "后训练数据"),
    "corpora": ("Corpora", "语料"),
    "answers": ("Final answers", "最终答案"),
}


def areas() -> list[Area]:
    """Import every area's cases, in the order of the page."""
    return [
        Area(title=title, title_zh=title_zh, cases=import_module(f"tests.compatibility.{name}").CASES)
        for name, (title, title_zh) in AREAS.items()
    ]
