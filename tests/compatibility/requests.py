"""Requests as other servers' clients write them, against a server of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tests.compatibility.case import Case, Outcome, Status
from tests.compatibility.served_model import served
from tests.serve.api.test_client_requests import REQUESTS
from tests.serve.serving import Running

HELLO: dict[str, Any] = {"role": "user", "content": "The river"}
BEGUN: dict[str, Any] = {"role": "assistant", "content": "The stone hears "}
TIME: dict[str, Any] = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": TIME}]
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]},
}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
PETS: dict[str, Any] = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
        {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]},
    ],
    "discriminator": {"propertyName": "kind"},
}
Shown = Callable[[dict[str, Any], Any], str]


def _status(answer: Any) -> str:
    return f"status {answer.status_code}"


def _content(body: dict[str, Any], answer: Any) -> str:
    text = str(body["choices"][0]["message"]["content"])
    return json.dumps(json.loads(text)) if text.startswith("{") else text


def _reason(body: dict[str, Any], answer: Any) -> str:
    return f"finish_reason {body['choices'][0]['finish_reason']}"


def _generated(body: dict[str, Any], answer: Any) -> str:
    return f"{body['usage']['completion_tokens']} tokens generated"


def _clamped(body: dict[str, Any], answer: Any) -> str:
    return str(answer.headers["x-fathom-clamped"])


def _chat(shown: Shown = _generated, **fields: Any) -> Callable[[Path], Outcome]:
    """Ask for a chat completion; what had no effect, a refusal, or what ``shown`` says of the answer."""

    def work(server: Running) -> Outcome:
        body = {"messages": [HELLO], "temperature": 0, "max_tokens": 6, "ignore_eos": True} | fields
        with server.http() as http:
            answer = http.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return Outcome("refused", answer.json()["error"]["message"])
        ignored = answer.headers.get("x-fathom-ignored-fields")
        return Outcome("ignored", ignored) if ignored else Outcome("works", shown(answer.json(), answer))

    return served(work)


def _sent_back(server: Running) -> Outcome:
    with server.http() as http:
        asked = {"temperature": 0, "max_tokens": 4}
        said = http.post("/v1/chat/completions", json=asked | {"messages": [HELLO]}).json()["choices"][0]["message"]
        answer = http.post("/v1/chat/completions", json=asked | {"messages": [HELLO, said, HELLO]})
    return Outcome("works", f"{_status(answer)}, fields {', '.join(said)}")


def _client(name: str) -> Callable[[Path], Outcome]:
    """Send a client's request, written out in tests/serve/api/client_requests.json."""

    def work(server: Running) -> Outcome:
        body = REQUESTS[name]["body"]
        limits = [field for field in ("max_tokens", "max_completion_tokens") if field in body] or ["max_tokens"]
        with server.http() as http:
            answer = http.post(REQUESTS[name]["path"], json=body | dict.fromkeys(limits, 4))
        if answer.status_code != 200:
            return Outcome("refused", answer.json()["error"]["message"])
        ignored = answer.headers.get("x-fathom-ignored-fields")
        return Outcome("ignored", ignored) if ignored else Outcome("works", _status(answer))

    return served(work)


def _http(method: str, path: str, **headers: str) -> Callable[[Path], Outcome]:
    def work(server: Running) -> Outcome:
        with server.http() as http:
            answer = http.request(method, path, headers=headers)
        return Outcome("works" if answer.status_code < 300 else "refused", _status(answer))

    return served(work, api_keys=("a-key-of-some-length",), cors_origins=("https://page.example",))


PREFLIGHT = {
    "origin": "https://page.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
}


def _case(what: str, zh: str, expected: Status, run: Callable[[Path], Outcome], source: str = "") -> Case:
    return Case(what=what, zh=zh, expected=expected, run=run, source=source)


FIELDS = (
    _case(
        "keys of a client's own in messages",
        "消息中带有客户端自己的键",
        "ignored",
        _chat(messages=[HELLO | {"id": "m1", "timestamp": 1, "cache_control": {"type": "ephemeral"}}]),
        "vllm-project/vllm#10463",
    ),
    _case(
        "`num_ctx`, `cache_prompt`, `skip_special_tokens`",
        "字段 `num_ctx`、`cache_prompt`、`skip_special_tokens`",
        "ignored",
        _chat(num_ctx=8192, cache_prompt=True, skip_special_tokens=True),
        "open-webui/open-webui#26457",
    ),
    _case("a misspelt field: `temprature`", "拼写错误的字段：`temprature`", "ignored", _chat(temprature=1)),
    _case("10 MB in an unknown field", "未知字段中有 10 MB 文本", "ignored", _chat(blob="x" * 10_000_000)),
    _case(
        "10 MB of empty lists in an unknown field",
        "未知字段中有 10 MB 空列表",
        "refused",
        _chat(blob=[[]] * 3_400_000),
    ),
    _case("Ollama's `options`", "Ollama 的 `options`", "works", _chat(max_tokens=None, options={"num_predict": 3})),
    _case(
        "`num_predict` that contradicts `max_tokens`",
        "`num_predict` 与 `max_tokens` 相矛盾",
        "ignored",
        _chat(num_predict=9),
    ),
    _case("`repeat_penalty`", "字段 `repeat_penalty`", "works", _chat(repeat_penalty=1.1)),
    _case("`enable_thinking`", "字段 `enable_thinking`", "works", _chat(enable_thinking=False)),
    _case("OpenRouter's `reasoning`", "OpenRouter 的 `reasoning`", "works", _chat(reasoning={"effort": "low"})),
    _case(
        "`max_tokens` above the context",
        "`max_tokens` 超出上下文长度",
        "works",
        _chat(_clamped, max_tokens=10**6, ignore_eos=False, stop=["e"]),
    ),
    _case("`max_tokens: 4.0`", "字段 `max_tokens: 4.0`", "works", _chat(max_tokens=4.0), "BerriAI/litellm#1854"),
    _case('`max_tokens: "4"`', '字段 `max_tokens: "4"`', "refused", _chat(max_tokens="4")),
    _case(
        "every optional field null",
        "所有可选字段均为 null",
        "works",
        _chat(**dict.fromkeys(("stop", "tools", "tool_choice", "response_format", "logit_bias", "user", "audio"))),
    ),
    _case("`prediction` and `user`", "字段 `prediction` 与 `user`", "ignored", _chat(prediction={}, user="u")),
)
FORMATS = (
    _case("`guided_json`", "字段 `guided_json`", "works", _chat(_content, guided_json=SCHEMA, max_tokens=60)),
    _case("`guided_choice`", "字段 `guided_choice`", "works", _chat(_content, guided_choice=["yes"], max_tokens=60)),
    _case("`structured_outputs.regex`", "字段 `structured_outputs.regex`", "works",
          _chat(_content, structured_outputs={"regex": "ok!"}, max_tokens=60)),
    _case("a grammar in llama.cpp's syntax", "llama.cpp 语法的文法", "works",
          _chat(_content, grammar='root ::= "ab" "c"', max_tokens=60)),
    _case("`format: json` of Ollama", "Ollama 的 `format: json`", "works", _chat(format="json")),
    _case("a JSON schema with pydantic's `discriminator`", "含 pydantic 的 `discriminator` 的 JSON 模式", "works",
          _chat(guided_json=PETS), "dottxt-ai/outlines#823"),
    _case("a JSON schema of a set (`uniqueItems`)", "集合的 JSON 模式（`uniqueItems`）", "refused",
          _chat(guided_json=TypeAdapter(set[int]).json_schema())),
    _case("dictionary keys of an enum (`propertyNames`)", "以枚举为键的字典（`propertyNames`）", "works",
          _chat(guided_json={"type": "object", "propertyNames": {"enum": ["a"]}})),
)  # fmt: skip
MESSAGES = (
    _case("what the server sent, sent back", "将服务器发出的消息原样发回", "works", served(_sent_back)),
    _case("parts of type refusal and output_text", "类型为 refusal 与 output_text 的内容部分", "works",
          _chat(messages=[HELLO, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, HELLO])),
    _case("audio as input", "音频输入", "refused",
          _chat(messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}])),
    _case("audio as output (`modalities`)", "音频输出（`modalities`）", "refused", _chat(modalities=["text", "audio"])),
    _case("former `functions` and `function_call`", "旧式 `functions` 与 `function_call`", "works",
          _chat(_reason, functions=[TIME], function_call={"name": "get_time"}, max_tokens=90, ignore_eos=False)),
    _case("`tool_choice` of type allowed_tools", "allowed_tools 类型的 `tool_choice`", "works",
          _chat(_reason, tools=TOOLS, max_tokens=90, ignore_eos=False, tool_choice=ALLOWED)),
    _case("a tool that is no function (`web_search`)", "非函数工具（`web_search`）", "ignored",
          _chat(tools=[{"type": "web_search"}])),
    _case("`continue_final_message`", "字段 `continue_final_message`", "works",
          _chat(messages=[HELLO, BEGUN], continue_final_message=True, add_generation_prompt=False),
          "sgl-project/sglang#3971"),
    _case("`prefix: true` on the last message", "最后一条消息带 `prefix: true`", "works",
          _chat(messages=[HELLO, BEGUN | {"prefix": True}]), "ggml-org/llama.cpp#11755"),
    _case("`prefix: true` on a user's message", "用户消息带 `prefix: true`", "refused",
          _chat(messages=[HELLO | {"prefix": True}])),
)  # fmt: skip
HTTP = (
    _case("HEAD on `/health`", "对 `/health` 的 HEAD 请求", "works", _http("HEAD", "/health")),
    _case("the preflight of OpenAI's JavaScript client", "OpenAI 官方 JavaScript 客户端的预检请求", "works",
          _http("OPTIONS", "/v1/chat/completions", **PREFLIGHT)),
    _case("the key as `x-api-key`", "以 `x-api-key` 给出密钥", "works",
          _http("GET", "/v1/models", **{"x-api-key": "a-key-of-some-length"})),
    _case("a doubled `/v1` and a slash at the end", "重复的 `/v1` 与末尾斜杠", "works",
          _http("GET", "/v1/v1/models/", authorization="Bearer a-key-of-some-length")),
)  # fmt: skip
CLIENTS = tuple(
    _case(f"the request of {name}", f"{zh}的请求", expected, _client(key), source)
    for key, name, zh, expected, source in (
        ("litellm", "LiteLLM", "LiteLLM ", "ignored", ""),
        ("langchain", "LangChain", "LangChain ", "works", ""),
        ("open webui", "Open WebUI's page", "Open WebUI 页面", "ignored", "open-webui/open-webui#14926"),
        ("continue", "Continue", "Continue ", "ignored", ""),
        ("cline", "Cline", "Cline ", "ignored", ""),
        ("openhands", "OpenHands", "OpenHands ", "ignored", "OpenHands/OpenHands-CLI#83"),
        ("aider prefill", "aider, with a prefill", "aider（带预填）", "works", ""),
        ("llama.cpp page", "llama.cpp's page", "llama.cpp 页面", "ignored", ""),
        ("sillytavern", "SillyTavern", "SillyTavern ", "ignored", ""),
        ("lm-evaluation-harness", "lm-evaluation-harness", "lm-evaluation-harness ", "works", ""),
    )
)
CASES = (*FIELDS, *FORMATS, *MESSAGES, *HTTP, *CLIENTS)
