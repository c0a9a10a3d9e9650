"""One server, three interfaces: the official clients of OpenAI and of Anthropic, which know nothing of Fathom."""

from __future__ import annotations

import json

from anthropic import Anthropic, NotFoundError
from openai import OpenAI
from running import serving

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "Name the capital of France in one short sentence."}]
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}, "required": ["city"]}

with serving(MODEL) as address:
    openai = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    anthropic = Anthropic(base_url=address, api_key="none", max_retries=0)

    print("# /v1/chat/completions")
    chat = openai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=30)
    print(chat.choices[0].message.content, chat.choices[0].finish_reason)

    print("# /v1/responses")
    with openai.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=30) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    print(*dict.fromkeys(kind.removeprefix("response.") for kind in kinds))
    print(first.output_text, first.status)
    more = openai.responses.create(
        model=MODEL, input="And of Norway?", previous_response_id=first.id, temperature=0, max_output_tokens=30
    )
    print(more.output_text, f"({more.usage.input_tokens_details.cached_tokens} tokens were cached)")
    call = openai.responses.create(
        model=MODEL,
        input="How is the weather in Oslo?",
        tools=[{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}],
        tool_choice="required",
        temperature=0,
    ).output[0]
    print(call.type, call.name, call.arguments)

    print("# /v1/messages")
    with anthropic.messages.stream(
        model=MODEL, max_tokens=30, messages=QUESTION, extra_body={"temperature": 0}
    ) as stream:
        print(*stream.text_stream, sep="|", end=" ")
        message = stream.get_final_message()
    count = anthropic.messages.count_tokens(model=MODEL, messages=QUESTION)
    print(message.stop_reason, f"({count.input_tokens} tokens were counted)")
    used = anthropic.messages.create(
        model=MODEL,
        max_tokens=60,
        messages=[{"role": "user", "content": "How is the weather in Oslo?"}],
        tools=[{"name": "weather", "input_schema": WEATHER}],
        tool_choice={"type": "any"},
        extra_body={"temperature": 0},
    )
    print(used.stop_reason, json.dumps(used.content[0].input))
    try:
        anthropic.messages.create(model="claude-opus-5", max_tokens=9, messages=QUESTION)
    except NotFoundError as error:
        print(error.body["error"]["type"], "-", error.body["error"]["message"])
