"""Servers of several models, embeddings, consoles of other encodings, and machines that lack something."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

from fathom.checkpoint.hf import save_hf
from fathom.cli.console import prepare_streams, print_json
from fathom.cli.diagnosis.packages import package_findings, read_requirements
from fathom.cli.main import guarded, make_app
from fathom.cli.options import parse_bytes
from fathom.cli.served_models import NamedModel, OpeningOptions, definitions, named_models
from fathom.errors import FathomError
from fathom.extras import pip
from fathom.model import build
from fathom.serve.model_pool import ModelPool
from fathom.serve.settings import ServeSettings
from fathom.spec.engine import EngineSpec
from fathom.tokenizer import train_bpe
from tests.compatibility.case import Case, Outcome
from tests.serve.serving import SPEC, TEXT, Running, serving

IGNORED = "x-fathom-ignored-fields"
ENGINE = EngineSpec(max_batch=4, cache_tokens=1024, page_size=16)


def _pool(folder: Path, *names: str, memory: int = 1 << 30) -> ModelPool:
    """Publish a tiny model for each name, and return them as one server's."""
    tokenizer = train_bpe([TEXT * 3], vocab_size=SPEC.vocab_size)
    tokenizer.save(folder / "tokenizer")
    spec = dataclasses.replace(SPEC, vocab_size=tokenizer.vocab_size)
    for seed, name in enumerate(names):
        save_hf(folder / name, spec, dict(build(spec, seed=seed).state_dict()), tokenizer=folder / "tokenizer")
    aliases = {"alpha": ("gpt-4o",)}
    opening = OpeningOptions(device="cpu", dtype="auto", weights="plain", engine=ENGINE)
    named = [NamedModel(name, str(folder / name), aliases.get(name, ())) for name in names]
    found = definitions(named, opening, memory)
    one_at_once = found[0].nbytes * 3 // 2 if memory == 1 << 30 else memory
    return ModelPool(found, ServeSettings(drain_seconds=5.0), memory=one_at_once)


def _served(work: Callable[[Running, openai.OpenAI], str], *names: str) -> Callable[[Path], Outcome]:
    """Return a case's ``run``: a server of models, asked by OpenAI's client; its error is a refusal."""

    def run(folder: Path) -> Outcome:
        try:
            with serving(_pool(folder, *(names or ("alpha",)))) as server, server.client() as client:
                return Outcome("works", work(server, client))
        except openai.APIStatusError as error:
            body: Any = error.body
            return Outcome("refused", body["message"])

    return run


def _in_turn(server: Running, client: openai.OpenAI) -> str:
    answers = [
        client.completions.create(model=name, prompt="a", max_tokens=2).model for name in ("alpha", "beta", "alpha")
    ]
    return f"{', '.join(answers)}; in memory: {', '.join(server.models.workers())}"


def _ask(model: str) -> Callable[[Running, openai.OpenAI], str]:
    return lambda server, client: f"model: {client.completions.create(model=model, prompt='a', max_tokens=2).model}"


def _listed(server: Running, client: openai.OpenAI) -> str:
    return f"{', '.join(card.id for card in client.models.list())}; loaded: {len(server.models.workers())}"


def _unnamed(server: Running, client: openai.OpenAI) -> str:
    client.post("/completions", cast_to=object, body={"prompt": "a"})
    return ""


def _too_large(folder: Path) -> Outcome:
    try:
        _pool(folder, "alpha", memory=1000).close()
    except FathomError as error:
        return Outcome("refused", str(error))
    return Outcome("works")


def _embedded(**fields: Any) -> Callable[[Path], Outcome]:
    def work(server: Running, client: openai.OpenAI) -> str:
        found = client.embeddings.create(model="alpha", **fields).data
        return f"{len(found)} of {len(found[0].embedding)} dimensions"

    return _served(work)


def _posted(**fields: Any) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        with serving(_pool(folder, "alpha")) as server, server.http() as http:
            answer = http.post("/v1/embeddings", json={"model": "alpha", **fields})
        if answer.status_code != 200:
            return Outcome("refused", answer.json()["error"]["message"])
        ignored = answer.headers.get(IGNORED)
        return Outcome("works") if ignored is None else Outcome("ignored", ignored)

    return run


def _console(encoding: str, work: Callable[[], None]) -> Callable[[Path], Outcome]:
    """Run ``work`` with standard streams of an encoding; the detail is what was written, to the first semicolon."""

    def run(folder: Path) -> Outcome:
        buffers = io.BytesIO(), io.BytesIO()
        out, err = (io.TextIOWrapper(buffer, encoding=encoding, write_through=True) for buffer in buffers)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            prepare_streams()
            work()
        (written,) = [buffer.getvalue().decode(encoding) for buffer in buffers if buffer.getvalue()]
        return Outcome("works", written.partition(";")[0].strip())

    return run


def _missing_file() -> None:
    guarded(lambda: make_app()(["inspect", "模型"]))


def _json() -> None:
    print_json({"name": "模型🌊"}, indent=None)


def _refused(work: Callable[[], object]) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        try:
            work()
        except FathomError as error:
            return Outcome("refused", str(error))
        return Outcome("works")

    return run


def _doctor(folder: Path) -> Outcome:
    found = package_findings(read_requirements(), {"fastapi": "ImportError: gone"})
    broken = [finding for finding in found if finding.status == "broken"]
    said = "; ".join(f"{finding.name} broken: {finding.remedy}" for finding in broken)
    return Outcome("works", said.replace(pip(), "pip"))


CASES = (
    Case(
        what="two models in one server, with memory for one: each is loaded when it is asked for",
        zh="一个服务器两个模型，内存只够一个：用到时才加载",
        expected="works",
        run=_served(_in_turn, "alpha", "beta"),
    ),
    Case(
        what="`GET /v1/models` before any model is loaded",
        zh="尚未加载任何模型时的 `GET /v1/models`",
        expected="works",
        run=_served(_listed, "alpha", "beta"),
    ),
    Case(
        what="a client that only knows `gpt-4o`, with `--alias gpt-4o=alpha`",
        zh="只认 `gpt-4o` 的客户端，配合 `--alias gpt-4o=alpha`",
        expected="works",
        run=_served(_ask("gpt-4o"), "alpha", "beta"),
    ),
    Case(
        what="a request for a model that is not served",
        zh="请求未提供的模型",
        expected="refused",
        run=_served(_ask("gpt-9"), "alpha", "beta"),
    ),
    Case(
        what="a request without `model` where two are served",
        zh="提供两个模型时，请求不带 `model`",
        expected="refused",
        run=_served(_unnamed, "alpha", "beta"),
    ),
    Case(
        what="a model larger than `--model-memory`",
        zh="模型超过 `--model-memory`",
        expected="refused",
        run=_too_large,
    ),
    Case(
        what="`--model-memory plenty`",
        zh="`--model-memory plenty` 不是大小",
        expected="refused",
        run=_refused(lambda: parse_bytes("--model-memory", "plenty")),
    ),
    Case(
        what="an alias of a model that is not served",
        zh="别名指向未提供的模型",
        expected="refused",
        run=_refused(lambda: named_models(["a=x", "b=y"], None, ["gpt-4o=c"])),
    ),
    Case(
        what="`embeddings.create` of OpenAI's client, which asks for base64",
        zh="OpenAI 客户端的 `embeddings.create`（默认请求 base64）",
        source="ggml-org/llama.cpp#14702",
        expected="works",
        run=_embedded(input=["The river", "河"]),
    ),
    Case(
        what="embeddings with `dimensions` and `encoding_format: float`",
        zh="嵌入：`dimensions` 与 `encoding_format: float`",
        expected="works",
        run=_embedded(input="The river", dimensions=8, encoding_format="float"),
    ),
    Case(
        what="embeddings of token ids, as LangChain's OpenAIEmbeddings sends them",
        zh="嵌入：词元 id 列表（LangChain 的 OpenAIEmbeddings 的写法）",
        expected="works",
        run=_embedded(input=[[5, 6, 7], [8]]),
    ),
    Case(
        what="embeddings with official fields that are null",
        zh="嵌入：官方字段为 null",
        expected="works",
        run=_posted(input="a", dimensions=None, encoding_format=None, user=None),
    ),
    Case(
        what="embeddings with another server's field, `truncate_prompt_tokens`",
        zh="嵌入：其他服务器的字段 `truncate_prompt_tokens`",
        expected="ignored",
        run=_posted(input="a", truncate_prompt_tokens=8),
    ),
    Case(
        what="embeddings with more dimensions than the model has",
        zh="嵌入：维数超过模型",
        expected="refused",
        run=_embedded(input="a", dimensions=4096),
    ),
    Case(
        what="the embedding of an empty text",
        zh="空文本的嵌入",
        expected="refused",
        run=_embedded(input=["a", ""]),
    ),
    Case(
        what="an error that names a Chinese file, on a console in cp1252",
        zh="cp1252 控制台上，错误信息含中文文件名",
        source="huggingface/huggingface_hub#4609",
        expected="works",
        run=_console("cp1252", _missing_file),
    ),
    Case(
        what="the same on a console in gbk",
        zh="gbk 控制台上，错误信息含中文文件名",
        source="huggingface/huggingface_hub#4609",
        expected="works",
        run=_console("gbk", _missing_file),
    ),
    Case(
        what="`--json` with Chinese and emoji on an ASCII console",
        zh="ASCII 控制台上的 `--json`，含中文与表情符号",
        source="huggingface/huggingface_hub#4609",
        expected="works",
        run=_console("ascii", _json),
    ),
    Case(
        what="`fathom doctor` where a package of an extra cannot be imported",
        zh="`fathom doctor`：某个附加组件的软件包无法导入",
        expected="works",
        run=_doctor,
    ),
)
