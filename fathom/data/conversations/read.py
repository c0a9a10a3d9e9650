"""Reading conversations from files of any known form; those that cannot be used are reported and skipped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fathom.data.conversations.forms import CONVERSATION_FORMS, Conversation
from fathom.data.conversations.loss_mask import Sample, encode_with_loss_mask
from fathom.data.conversations.templated import KeepThinking
from fathom.data.forms import AS_FOUND, Columns, read_rows
from fathom.data.row_report import Reason, RowProblem, RowReport
from fathom.errors import DataError
from fathom.tokenizer import Tokenizer


def read_conversations(path: Path, report: RowReport, columns: Columns = AS_FOUND) -> Iterator[Conversation]:
    """Yield the conversations of a file, or of the files of a folder, in one of ``CONVERSATION_FORMS``.

    Roles are system, developer, user, assistant and tool; an assistant's reasoning stands under ``reasoning_content``
    or ``reasoning``, its calls under ``tool_calls``. A row that cannot be used is reported and skipped.

    Raises:
        DataError: the file cannot be read, or ``columns`` has to say what its columns mean.
    """
    for place, conversation in read_rows(path, CONVERSATION_FORMS, report, columns):
        yield replace(conversation, place=place)


def encode_conversations(
    tokenizer: Tokenizer,
    conversations: Iterable[Conversation],
    report: RowReport,
    *,
    max_tokens: int,
    learn: Sequence[str] = ("assistant",),
    thinking: KeepThinking = "keep",
    template: str | None = None,
) -> list[Sample]:
    """Return the conversations as samples of at most ``max_tokens`` + 1 tokens.

    One that the chat template refuses, that is longer, or of which no token is in the loss is reported and skipped.

    Raises:
        DataError: none is left; the message names the first problem.
    """
    samples = []
    for conversation in conversations:
        try:
            sample = encode_with_loss_mask(
                tokenizer,
                conversation.messages,
                learn=learn,
                tools=conversation.tools,
                thinking=thinking,
                template=template,
                turns=conversation.learn,
            )
        except DataError as error:
            report.add(RowProblem("template", conversation.place, str(error)))
            continue
        problem = _unusable(sample, max_tokens, learn)
        if problem is not None:
            reason, sentence = problem
            report.add(RowProblem(reason, conversation.place, sentence))
            continue
        report.used += 1
        report.left_out += sample.left_out
        samples.append(replace(sample, key=conversation.key))
    if not samples:
        raise DataError(f"conversations: none of {report.read} can be used ({report.first}); fix or add some")
    return samples


def _unusable(sample: Sample, max_tokens: int, learn: Sequence[str]) -> tuple[Reason, str] | None:
    if len(sample.tokens) > max_tokens + 1:
        return "too_long", f"{len(sample.tokens)} tokens exceed {max_tokens + 1}; shorten it, or raise sequence_length"
    if not any(sample.learned):
        return (
            "nothing_learned",
            f"no turn of {' or '.join(learn)} can be trained on; add one, or change learn",
        )
    return None
