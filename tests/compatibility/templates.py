"""Idioms of released chat templates, where they lie, and templates that do harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fathom.chat import encode_chat, render
from fathom.chat.output.hermes import fit_messages_to_template
from fathom.checkpoint.gguf.tokens import tokenizer_from_metadata
from fathom.checkpoint.gguf.write_tokens import metadata_from_tokenizer
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer, train_bpe
from tests.chat.conversations import R1, transformers_text
from tests.compatibility.case import Case, Outcome
from tests.compatibility.modelfiles import SPEC

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLED = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
TURNS = [*HELLO, {"role": "assistant", "content": "<think>\nso\n</think>\n\n4"}, {"role": "user", "content": "2 < 3?"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
HERMES = (
    "{% macro kind(spec) %}{{ {'integer': 'int'}[spec.type] }}{% endmacro %}"
    "{% for t in tools %}{{ t.function.name }}({% for k, v in t.function.parameters.properties.items() %}"
    "{{ k }}: {{ kind(v) }}{% endfor %}){% endfor %}{% for m in messages %}{{ '|' + m['content'] }}{% endfor %}"
)
NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
_LONGEST_LINE = 160


@cache
def _tokenizer() -> Tokenizer:
    return train_bpe(["The quick brown fox, <think> and 2+2."], vocab_size=320)


def _as_transformers(
    template: str, messages: Sequence[Mapping[str, Any]] = HELLO, given: Mapping[str, Any] | None = None, *_: Path
) -> Outcome:
    """Render, and compare with transformers."""
    variables = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", **(given or {})}
    text = render(messages, template, **variables)
    same = text == transformers_text(template, list(map(dict, messages)), **variables)
    return Outcome("works" if same else "refused", "as in transformers" if same else f"another text: {text[:60]!r}")


def _says(template: str, messages: Sequence[Mapping[str, Any]], wanted: str, *_: Path) -> Outcome:
    text = render(messages, template)
    return Outcome("works" if wanted in text else "refused", repr(wanted if wanted in text else text[:60]))


def _refused(template: str, *_: Path) -> Outcome:
    try:
        render(HELLO, template)
    except DataError as error:
        return Outcome("refused", str(error)[:_LONGEST_LINE])
    return Outcome("works")


def _ids_as_text(template: str, messages: Sequence[Mapping[str, Any]], *_: Path) -> Outcome:
    """Encode, and compare with the ids of the text that transformers makes."""
    tokenizer = _tokenizer()
    text = transformers_text(
        template, list(map(dict, messages)), add_generation_prompt=True, **tokenizer.template_variables
    )
    same = encode_chat(tokenizer, messages, template) == tokenizer.encode(text or "", allow_special=True)
    return Outcome("works" if same else "refused", "the ids of transformers' text" if same else "other ids")


def _wrapped(folder: Path) -> Outcome:
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    text = render(fit_messages_to_template(template, HELLO, ()), template)
    return Outcome("works" if text == "hello" else "refused", repr(text))


def _files(write: Callable[[Path], None], wanted: str, folder: Path) -> Outcome:
    _tokenizer().save(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "chat_template"}))
    write(folder)
    tokenizer = Tokenizer.load(folder)
    try:
        text = tokenizer.decode(encode_chat(tokenizer, HELLO, tools=[TOOL]))
    except DataError as error:
        return Outcome("refused", str(error)[:_LONGEST_LINE])
    return Outcome("works" if text == wanted else "refused", repr(text))


def _put(value: Any, folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"chat_template": value}))


def _write(name: str, text: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def _gguf(folder: Path) -> Outcome:
    spec = replace(SPEC, vocab_size=320)
    named = Tokenizer(_tokenizer().tokenizer_json, {**_tokenizer().config, "chat_template": NAMED})
    metadata = {key: value for key, (_, value) in metadata_from_tokenizer(named, spec).items()}
    again = tokenizer_from_metadata(metadata)
    assert again is not None
    return Outcome(
        "works" if again.chat_templates == named.chat_templates else "refused", ", ".join(again.chat_templates)
    )


def _same(what: str, zh: str, template: str, messages: Any = HELLO, given: Any = None, source: str = "") -> Case:
    return Case(
        what=what, zh=zh, expected="works", run=partial(_as_transformers, template, messages, given), source=source
    )


def _harm(what: str, zh: str, template: str) -> Case:
    return Case(what=what, zh=zh, expected="refused", run=partial(_refused, template))


CASES: tuple[Case, ...] = (
    Case(
        what="the R1 distills' template: `tool['type']`, text joined with `+`, `split('</think>')[-1]`",
        zh="R1 蒸馏模型的模板：`tool['type']`、用 `+` 拼接文本、`split('</think>')[-1]`",
        expected="works",
        run=partial(_ids_as_text, R1, TURNS),
    ),
    Case(
        what="the same with a tool call whose arguments are an object, where the template joins text",
        zh="同一模板，工具调用的参数为对象，而模板按文本拼接",
        expected="works",
        run=partial(_says, R1, CALLED, '{"a": 2}'),
    ),
    Case(
        what="arguments as JSON text, where the template writes `arguments | tojson`",
        zh="参数为 JSON 文本，而模板写作 `arguments | tojson`",
        expected="works",
        run=partial(
            _says,
            "{% for c in messages[-1].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}",
            [*HELLO, {**CALLED[1], "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]}],
            '{"a": 2}',
        ),
    ),
    _same(
        "Hermes-2-Pro's macro that reads `spec.type`",
        "Hermes-2-Pro 读取 `spec.type` 的宏",
        HERMES,
        given={"tools": [TOOL]},
    ),
    _same(
        "`strftime_now('%d %B %Y')`",
        "当前日期 `strftime_now('%d %B %Y')`",
        "{{ strftime_now('%d %B %Y') }}",
        source="huggingface/text-generation-inference#2987",
    ),
    _same(
        "`{% generation %}`", "标签 `{% generation %}`", "{% generation %}{{ messages[0].content }}{% endgeneration %}"
    ),
    _same(
        "`{% break %}` and `{% continue %}`",
        "`{% break %}` 与 `{% continue %}`",
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
        "{% endfor %}",
    ),
    _same(
        "`tojson` with indent, separators, sort_keys and ensure_ascii",
        "`tojson` 的 indent、separators、sort_keys、ensure_ascii 参数",
        "{{ tools | tojson(indent=2) }}{{ tools | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
        given={"tools": [TOOL]},
    ),
    _same(
        "`%` and `*` on text, slices, `format`",
        "文本上的 `%` 与 `*`、切片、`format`",
        "{{ '%s-%d' % ('a', 3) }}{{ '=' * 8 }}{{ 'hello'[1:-1] }}{{ '{:>4}'.format('x') }}",
    ),
    _same(
        "namespaces, macros with `caller`, `{% set %}` blocks, white-space control",
        "namespace、带 `caller` 的宏、`{% set %}` 块、空白控制",
        "{% macro f() %}[{{ caller() }}]{% endmacro %}{% set ns = namespace(n=0) -%}\n  {% set x %}{{ ns.n }}"
        "{% endset %}\n{%- call f() %}{{ x }}{% endcall %}",
    ),
    _same(
        "`message.content is none` in a call without content",
        "无内容的工具调用中的 `message.content is none`",
        "{% for m in messages %}{{ m.content is none }}{% endfor %}",
        CALLED,
    ),
    _same(
        "reasoning under `reasoning`, `thinking` or `reasoning_content`",
        "推理内容位于 `reasoning`、`thinking` 或 `reasoning_content`",
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
        [{"role": "assistant", "content": "4", "reasoning": "so"}],
    ),
    Case(
        what="`content.startswith('<tool_response>')` and `'</think>' in content`",
        zh="`content.startswith('<tool_response>')` 与 `'</think>' in content`",
        expected="works",
        run=partial(
            _ids_as_text,
            "{% for m in messages %}{{ m.content.startswith('<tool_response>') }}{{ '</t' in m.content }}{% endfor %}",
            [{"role": "user", "content": "<tool_response>1</tool_response>"}],
        ),
    ),
    Case(
        what="parts of text, where the template joins text",
        zh="内容为文本片段列表，而模板按文本拼接",
        expected="works",
        run=partial(_says, "{% for m in messages %}{{ 'Q: ' + m.content }}{% endfor %}", PARTS, "Q: hello"),
    ),
    Case(
        what="text, where the template reads parts only (chat, server, training)",
        zh="内容为文本，而模板只读取片段列表（对话、服务、训练）",
        expected="works",
        run=_wrapped,
    ),
    Case(
        what="`chat_template` is a list of named templates: `tool_use` where tools are given",
        zh="`chat_template` 为具名模板列表：有工具时使用 `tool_use`",
        expected="works",
        run=partial(_files, partial(_put, NAMED), "with tools"),
        source="ollama/ollama#6522",
    ),
    Case(
        what="`chat_template.jinja` beside tokenizer_config.json",
        zh="tokenizer_config.json 旁的 `chat_template.jinja`",
        expected="works",
        run=partial(_files, partial(_write, "chat_template.jinja", "file"), "file"),
    ),
    Case(
        what="`additional_chat_templates/tool_use.jinja`",
        zh="文件夹中的 `additional_chat_templates/tool_use.jinja`",
        expected="works",
        run=partial(_files, partial(_write, "additional_chat_templates/tool_use.jinja", "folder"), "folder"),
    ),
    Case(
        what="`chat_template.json` of a processor",
        zh="处理器的 `chat_template.json`",
        expected="works",
        run=partial(_files, partial(_write, "chat_template.json", '{"chat_template": "processor"}'), "processor"),
    ),
    Case(
        what="`tokenizer.chat_template.NAME` of a GGUF file, written and read again",
        zh="GGUF 文件中的 `tokenizer.chat_template.NAME`（写入并读回）",
        expected="works",
        run=_gguf,
    ),
    Case(
        what="a list of named templates without a default",
        zh="没有 default 的具名模板列表",
        expected="refused",
        run=partial(_files, partial(_put, [{"name": "rag", "template": "documents"}]), ""),
    ),
    _harm("`raise_exception`", "模板以 `raise_exception` 主动报错", "{{ raise_exception('roles must alternate') }}"),
    _harm(
        "a template that loops",
        "死循环式的模板",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ),
    _harm("a template that allocates", "大量分配内存的模板", "{{ 'a' * 10 ** 10 }}"),
    _harm("a template that computes a huge power", "计算巨大乘方的模板", "{% set n = 10 ** 9 %}{{ (7 ** n) % 3 }}"),
    _harm(
        "a template that writes without end",
        "无限输出的模板",
        "{% for i in range(99999) %}" + "x" * 99 + "{% endfor %}",
    ),
    _harm("a template that reaches for attributes", "试图访问内部属性的模板", "{{ cycler.__init__.__globals__ }}"),
    _harm("a template that includes a file", "试图包含文件的模板", "{% include '/etc/passwd' %}"),
)
