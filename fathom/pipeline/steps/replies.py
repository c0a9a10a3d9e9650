"""The replies step: what a model answered before fine-tuning and answers after it, in held-out conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from fathom.data.conversations.read import read_conversations
from fathom.data.forms import Columns
from fathom.data.row_report import RowReport
from fathom.errors import ContextError, DataError
from fathom.files import write_json
from fathom.inference.language_model import LanguageModel
from fathom.inference.loading import open_source
from fathom.pipeline.context import StepContext, model_step, tuned_step
from fathom.pipeline.run_models import open_step
from fathom.pipeline.steps.epoch_training import HELD_OUT
from fathom.posttrain.preferences import read_preferences
from fathom.spec.alignment import ConversationFile, DpoStep, PairFile, SftStep
from fathom.spec.recipe import RepliesStep

Messages = Sequence[Mapping[str, Any]]


def run(step: RepliesStep, context: StepContext) -> None:
    """Write conversations, what stands there as their last turn, and both answers to ``context.path(step)``."""
    tuned = tuned_step(context.recipe, step)
    found, held_out = _conversations(step, context, tuned)
    replies: list[dict[str, Any]] = [
        {"messages": list(messages[:-1]), "expected": str(messages[-1].get("content") or ""), "answers": {}}
        for messages in found
    ]
    stages = (model_step(context.recipe, tuned), tuned)
    tokenizer = open_source(context.path(tuned)).tokenizer()
    template = None if tokenizer is None else tokenizer.shown_template
    for number, stage in enumerate(stages):
        model = open_step(context, stage, template=template)
        for place, reply in enumerate(replies):
            reply["answers"][stage.name] = _answer(model, reply["messages"], step)
            done = number * len(replies) + place + 1
            context.progress.update(done, len(stages) * len(replies), "answers", phase=stage.name)
    write_json(context.path(step), {"step": tuned.name, "held_out": held_out, "replies": replies})


def _conversations(step: RepliesStep, context: StepContext, tuned: SftStep | DpoStep) -> tuple[list[Messages], bool]:
    """Return conversations that end with a turn of the assistant, and whether they were held out."""
    path = context.path(tuned) / HELD_OUT
    held_out = path.is_file()
    if held_out:
        read = read_conversations(path, RowReport(), Columns("messages"))
        source: Iterator[Messages] = (conversation.messages for conversation in read)
    else:
        source = _learned(tuned, context)
    fitting = (messages for messages in source if len(messages) > 1 and messages[-1]["role"] == "assistant")
    return list(islice(fitting, step.count)), held_out


def _learned(tuned: SftStep | DpoStep, context: StepContext) -> Iterator[Messages]:
    for source in tuned.data if isinstance(tuned, SftStep) else tuned.pairs:
        if isinstance(source, ConversationFile):
            columns = Columns(source.format, source.fields)
            for conversation in read_conversations(context.plan.data_path(source.path), RowReport(), columns):
                yield conversation.messages
        elif isinstance(source, PairFile):
            columns = Columns(source.format, source.fields)
            for pair in read_preferences(context.plan.data_path(source.path), RowReport(), columns):
                yield (*pair.messages, pair.chosen)


def _answer(model: LanguageModel, messages: Messages, step: RepliesStep) -> str:
    """Return an answer; of a conversation that the template or the context refuses, why there is none."""
    ask = partial(model.chat, messages, temperature=step.temperature, top_p=1.0, seed=1)
    try:
        try:
            return str(ask(max_tokens=step.max_tokens).text)
        except ContextError:
            return str(ask(max_tokens=None).text)  # as many as fit: fewer than the step allows
    except (ContextError, DataError) as error:
        return f"({error})"
