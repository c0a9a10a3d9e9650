"""Serve SmolLM2 and ask it as any program would: with the official client, which knows nothing of Fathom."""

from __future__ import annotations

from urllib.request import urlopen

from openai import BadRequestError, OpenAI
from running import serving

with serving("smollm2-135m") as address:
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    question = [{"role": "user", "content": "Name the capital of France in one short sentence."}]

    answer = client.chat.completions.create(model="smollm2-135m", messages=question, temperature=0, max_tokens=30)
    print("answer:", answer.choices[0].message.content)

    pieces = client.chat.completions.create(
        model="smollm2-135m",
        messages=question,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    result = list(pieces)
    print("streamed:", [p.choices[0].delta.content for p in result if p.choices and p.choices[0].delta.content])
    usage = result[-1].usage
    print(f"usage: {usage.prompt_tokens} prompt tokens, {usage.prompt_tokens_details.cached_tokens} of them cached")

    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer"}},
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    formed = client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Tell me about Paris in JSON."}],
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    print("by schema:", formed.choices[0].message.content)

    scored = client.completions.create(
        model="smollm2-135m", prompt="The sky is", max_tokens=1, temperature=0, logprobs=3
    )
    likely = scored.choices[0].logprobs.top_logprobs[0]
    print("likely next:", {token: round(logprob, 2) for token, logprob in likely.items()})

    try:
        client.chat.completions.create(model="smollm2-135m", messages=question, temperature=-1)
    except BadRequestError as error:
        print("refused:", error.body["message"])

    metrics = urlopen(f"{address}/metrics").read().decode()
    print(*[line for line in metrics.splitlines() if line.startswith("fathom_pages_used")], sep="\n")
