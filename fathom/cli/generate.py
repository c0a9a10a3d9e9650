"""``fathom generate``: continue a text, fill in its middle, or answer a file of prompts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fathom.cli import model_options, options, prompt_files, sampling
from fathom.cli.console import readable
from fathom.errors import SpecError
from fathom.spec.sampling import SamplingParams

if TYPE_CHECKING:
    from fathom.inference.language_model import LanguageModel


def generate(
    model: options.Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The text to continue; stdin if left out.")] = None,
    suffix: Annotated[
        str | None, typer.Option("--suffix", help="What comes after: the model fills in what stands between.")
    ] = None,
    source: prompt_files.Input = None,
    out: prompt_files.Out = None,
    skip_bad: prompt_files.SkipBad = False,
    chat: prompt_files.Chat = None,
    max_tokens: sampling.MaxTokens = None,
    temperature: sampling.Temperature = 0.8,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 0.95,
    min_p: sampling.MinP = 0.0,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    schema: sampling.Schema = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    adapter: model_options.Adapter = None,
    device: options.Device = "auto",
    dtype: model_options.Dtype = "auto",
    weights: model_options.Weights = "auto",
    cache: model_options.Cache = "plain",
    draft: model_options.Draft = "none",
) -> None:
    """Continue a text, printing it as it is drawn; or answer a file of prompts.

    A file is answered with many requests at once; interrupted, the same command goes on where it was.
    """
    engine = model_options.engine_spec(cache, draft)
    asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    SamplingParams(**asked, max_tokens=sampling.DEFAULT_TOKENS if max_tokens is None else max_tokens)  # before loading
    wanted = sampling.read_schema(schema)
    if source is not None or out is not None:
        source, out = prompt_files.check_options(source, out, prompt, suffix, echo)
        bounded = asked | {"max_tokens": max_tokens}
        asking = prompt_files.asking(source, out, bounded, stop, wanted, chat=chat, skip_bad=skip_bad)
        opened = model_options.open_model(model, device, dtype, weights, engine, adapter=adapter)
        prompt_files.answer(opened, model if adapter is None else f"{model} with {adapter}", source, out, asking)
        return
    prompt_files.check_unused(skip_bad, chat)
    if prompt is None:
        if sys.stdin.isatty():
            raise SpecError("--prompt", "there is no text to continue", "give --prompt TEXT or pipe a text in")
        prompt = sys.stdin.read()
    prompt, suffix = readable(prompt), None if suffix is None else readable(suffix)
    opened = model_options.open_model(model, device, dtype, weights, engine, adapter=adapter)
    _continue_text(opened, prompt, suffix, asked, max_tokens, stop, wanted, echo)


def _continue_text(
    opened: LanguageModel,
    prompt: str,
    suffix: str | None,
    asked: dict[str, Any],
    max_tokens: int | None,
    stop: list[str] | None,
    schema: dict[str, Any] | None,
    echo: bool,
) -> None:
    from fathom.inference.chat_session import ChatStream, fit_max_tokens, run
    from fathom.inference.request_preparation import TextOptions, prepare_text

    prepared = prepare_text(opened, prompt, suffix, TextOptions(stop=tuple(stop or ()), schema=schema))
    fitting = fit_max_tokens(opened, prepared, sampling.DEFAULT_TOKENS) if max_tokens is None else max_tokens
    stream = ChatStream(prepared, run(opened, prepared, asked | {"max_tokens": fitting}))
    model_options.announce(opened)
    if echo:
        print(prompt, end="")
    sampling.write_stream(stream)
