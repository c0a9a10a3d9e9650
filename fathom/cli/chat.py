"""``fathom chat``: talk with a model, line by line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fathom.cli import model_options, options, sampling
from fathom.cli.console import readable
from fathom.cli.conversation import Conversation, Message, converse
from fathom.errors import DataError
from fathom.locale import tr

Think = Annotated[
    bool | None,
    typer.Option("--think/--no-think", help="Reason first, or not at all; the model's own way if left out."),
]
ThinkingBudget = Annotated[
    int | None, typer.Option("--thinking-budget", help="Tokens of reasoning at most; then the answer begins.")
]


def chat(
    model: options.Model,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Show this image with the first message; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    think: Think = None,
    thinking_budget: ThinkingBudget = None,
    max_tokens: sampling.MaxTokens = None,
    temperature: sampling.Temperature = 0.8,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 0.95,
    min_p: sampling.MinP = 0.0,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    schema: sampling.Schema = None,
    chat_template: model_options.ChatTemplate = None,
    adapter: model_options.Adapter = None,
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
    weights: model_options.Weights = "auto",
    cache: model_options.Cache = "plain",
    draft: model_options.Draft = "none",
) -> None:
    """Talk with a model; each line of stdin is a message.

    Ctrl+C stops an answer, and leaves at the prompt. /help lists the commands: /reset, /retry, /system, /params, /save,
    /image, /exit. A line that ends with a backslash goes on in the next one, and so does a text between two \"\"\".
    """
    wanted = sampling.read_schema(schema)
    engine = model_options.engine_spec(cache, draft)
    opened = model_options.open_model(model, device, dtype, weights, engine, chat_template, adapter=adapter)
    if not opened.tokenizer.can_chat:
        again = f"fathom generate {shlex.quote(model)} --prompt TEXT"
        raise DataError(f"{model}: has no chat template; continue a text with: {again}")
    _ = opened.tokenizer.chat_template  # one of several must be chosen before anything is said

    from fathom.inference.request_preparation import ChatOptions

    first: list[Message] = [{"role": "system", "content": readable(system)}] if system else []
    conversation = Conversation(
        opened,
        ChatOptions(stop=tuple(stop or ()), schema=wanted, thinking=think, thinking_budget=thinking_budget),
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed},
        max_tokens,
        first,
        list(first),
        list(image or []),
    )
    model_options.announce(opened)
    if opened.suggestions.kind == "completion":
        again = f"fathom generate {shlex.quote(model)} --prompt TEXT"
        said = tr("it was trained on texts, not on conversations; continue a text with: {command}", command=again)
        print(said, file=sys.stderr)
    converse(conversation)
