"""The sft step: supervised fine-tuning on conversations, kept answers and worked problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fathom
from fathom.checkpoint.tensor_cache import cached_tensors
from fathom.data.conversations import Conversation
from fathom.data.conversations.encoded import EncodedSamples
from fathom.data.conversations.loader import ConversationLoader
from fathom.data.conversations.loss_mask import Sample
from fathom.data.conversations.read import encode_conversations, read_conversations
from fathom.data.conversations.templated import REASONING, normalize_messages
from fathom.data.folders.data_files import data_files
from fathom.data.forms import Columns
from fathom.data.row_report import RowProblem, RowReport
from fathom.errors import DataError
from fathom.files import file_sha256, sha256, write_bytes, write_json
from fathom.locale import tr
from fathom.pipeline.context import StepContext, named_step
from fathom.pipeline.problem_sources import opened_problems
from fathom.pipeline.run_models import trained_model
from fathom.pipeline.steps.epoch_training import (
    HELD_OUT,
    EpochData,
    hold_out,
    log_report,
    longest_example,
    train_epochs,
)
from fathom.posttrain.prompts import R1_ZERO, PromptFormatter
from fathom.spec.alignment import ConversationFile, ConversationSource, KeptAnswers, SftStep, WorkedProblems
from fathom.spec.answering import AnswersStep
from fathom.spec.mapping import to_mapping
from fathom.spec.problem import FileProblems, GymProblems, Problem
from fathom.spec.rollout import QUESTION_PLACEHOLDER, ChatPrompt, TextPrompt
from fathom.tokenizer import Tokenizer, special

DATA = "data.json"
CONVERSATIONS = "conversations.jsonl"


def run(step: SftStep, context: StepContext) -> None:
    """Train in ``context.path(step)``, from the latest checkpoint there if there is one.

    ``data.json`` beside the checkpoints says, source by source, how many conversations are learned, and why others are
    not. The encoded samples of each source are kept beside it, so that a resume does not encode them again.
    """
    start = trained_model(context, step)
    longest = longest_example(step, start)
    sources = _read_sources(step, context, start.tokenizer, longest)
    held_out, validation = _validation(step, context, start.tokenizer, longest, sources)
    samples, counts = EncodedSamples(), []
    for source, found, report in sources:
        learned, kept = found.split(held_out)
        repeat = 1 if isinstance(source, WorkedProblems) else source.repeat
        samples.extend(learned, repeat)
        count = {"source": _name(source), "used": len(learned), "repeat": repeat, "left_out": dict(report.problems)}
        counts.append(count | ({"held_out": len(kept)} if kept else {}))
    train = step.train
    if train.sequence_length is None:
        longest = max(len(tokens) for tokens in (*samples.tokens, *validation.tokens)) - 1
    loader = ConversationLoader(
        samples,
        sequence_length=longest,
        seed=train.seed,
        packing=train.packing,
        unit="examples" if train.batch.rows is None else "rows",
    )
    document = {
        "samples": loader.examples_per_epoch,
        "held_out": len(validation),
        "tokens": loader.tokens_per_epoch,
        "learned": loader.trainable_tokens_per_epoch,
        "longest": longest,
    }
    write_json(context.path(step) / DATA, document | {"sources": counts})
    batch = validation.packed() if validation else None
    train_epochs(
        step,
        context,
        start,
        EpochData(loader=loader, sequence_length=longest, unit="conversations", held_out=batch),
    )


def _read_sources(
    step: SftStep, context: StepContext, tokenizer: Tokenizer, longest: int
) -> list[tuple[ConversationSource, EncodedSamples, RowReport]]:
    """Return the samples of every source, reporting what is not used."""
    read = []
    for index, source in enumerate(step.data):
        found, report = _cached_source(index, source, step, context, tokenizer, longest)
        log_report(context, _name(source), report, "conversations")
        read.append((source, found, report))
    return read


def _validation(
    step: SftStep,
    context: StepContext,
    tokenizer: Tokenizer,
    longest: int,
    sources: Sequence[tuple[ConversationSource, EncodedSamples, RowReport]],
) -> tuple[frozenset[int], EncodedSamples]:
    """Return the keys that training leaves out, and the samples to validate on; the conversations are kept beside.

    Raises:
        DataError: nothing is left to learn from.
    """
    spec, every = step.train.validation, EncodedSamples()
    given: list[ConversationSource] = [source for source, *_ in sources]
    if spec.path is not None:
        file = ConversationFile(path=spec.path, format=spec.format, fields=spec.fields)
        validation, report = _cached_source(len(sources), file, step, context, tokenizer, longest)
        log_report(context, f"validation, {spec.path}", report, "conversations")
        held_out, given = frozenset(validation.keys), [file]
    else:
        for _, found, _ in sources:
            every.extend(found)
        held_out = hold_out(step, every.keys)
        validation = every.split(held_out)[1]
    if all(held_out.issuperset(found.keys) for _, found, _ in sources):
        raise DataError(f"steps.{step.name}.train.validation: holds out all there is to learn; add other conversations")
    if validation:
        context.progress.message(tr("{count} conversations are held out to validate on", count=len(validation)))
        _keep_held_out(step, context, tokenizer, given, held_out)
    return held_out, validation


def _keep_held_out(
    step: SftStep,
    context: StepContext,
    tokenizer: Tokenizer,
    sources: Sequence[ConversationSource],
    held_out: frozenset[int],
) -> None:
    """Write the conversations that are held out as text, each once, for samples and for people."""
    kept: dict[int, Conversation] = {}
    for source in sources:
        for conversation in _conversations(source, step, context, tokenizer, RowReport()):
            if conversation.key in held_out:
                kept.setdefault(conversation.key, conversation)
    rows = ({"messages": c.messages} | ({"tools": c.tools} if c.tools else {}) for c in kept.values())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(context.path(step) / HELD_OUT, lines.encode(errors="replace"))


def _cached_source(
    index: int,
    source: ConversationSource,
    step: SftStep,
    context: StepContext,
    tokenizer: Tokenizer,
    longest: int,
) -> tuple[EncodedSamples, RowReport]:
    """Return what ``read_source`` does, from the step's directory unless anything it depends on has changed."""

    def encode() -> dict[str, torch.Tensor]:
        samples, report = read_source(source, step, context, tokenizer, longest)
        text = json.dumps(report.to_json()).encode()
        return EncodedSamples.of(samples).tensors() | {"report": torch.tensor(list(text), dtype=torch.uint8)}

    context.path(step).mkdir(parents=True, exist_ok=True)
    key = _source_key(source, step, context, tokenizer, longest)
    found = cached_tensors(context.path(step) / f"samples-{index}.safetensors", key, encode)
    report = RowReport.from_json(json.loads(bytes(found["report"].tolist())))
    return EncodedSamples.from_tensors(found), report


def _source_key(
    source: ConversationSource, step: SftStep, context: StepContext, tokenizer: Tokenizer, longest: int
) -> str:
    """Return a digest of what a source's samples depend on: its data, tokenizer, template, settings and this code."""
    path: Path | None = None
    generator = ""
    match source:
        case ConversationFile():
            path = context.plan.data_path(source.path)
        case KeptAnswers():
            path = context.path(named_step(context.recipe, step, source.step, AnswersStep, "data.step")) / CONVERSATIONS
        case WorkedProblems(problems=FileProblems() as problems):
            path = context.plan.data_path(problems.path)
        case WorkedProblems(problems=GymProblems()):
            generator = _installed("reasoning-gym")
    settings = [to_mapping(part) for part in (source, step.prompt)]
    parts = [
        *settings,
        "with keys",
        longest,
        step.train.learn,
        tokenizer.fingerprint,
        dict(tokenizer.config),
        [file_sha256(file) for file in data_files(path) if file.is_file()] if path is not None else None,
        generator,
        fathom.__version__,
    ]
    return sha256(json.dumps(parts, sort_keys=True))


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # opening its problems says so
        return ""


def read_source(
    source: ConversationSource, step: SftStep, context: StepContext, tokenizer: Tokenizer, longest: int
) -> tuple[list[Sample], RowReport]:
    """Return a source's samples of at most ``longest`` + 1 tokens and a report of its conversations.

    Worked problems and kept answers are asked as ``step.prompt`` says; a file's conversations are as they are.

    Raises:
        DataError: the source cannot be read, or nothing of it can be used.
    """
    report = RowReport()
    conversations = _conversations(source, step, context, tokenizer, report)
    if isinstance(step.prompt, TextPrompt) and not isinstance(source, ConversationFile):
        return as_texts(tokenizer, step.prompt, conversations, report, max_tokens=longest), report
    hides = isinstance(step.prompt, ChatPrompt) and step.prompt.thinking == "closed"
    samples = encode_conversations(
        tokenizer,
        conversations,
        report,
        max_tokens=longest,
        learn=step.train.learn,
        thinking="drop" if hides and not isinstance(source, ConversationFile) else "keep",
    )
    return samples, report


def as_texts(
    tokenizer: Tokenizer,
    prompting: TextPrompt,
    conversations: Iterable[Conversation],
    report: RowReport,
    *,
    max_tokens: int,
) -> list[Sample]:
    """Return one-question conversations as plain texts: the prompt, then the answer in its tags, which is learned.

    Raises:
        DataError: none can be used.
    """
    prompt_formatter = PromptFormatter(tokenizer, prompting)
    opened, ends_in_space = prompt_formatter.read(()), (prompting.text or R1_ZERO)[-1:].isspace()
    samples = []
    for conversation in conversations:
        question, text = _question_and_answer(conversation)
        prompt = prompt_formatter.encode(Problem(id="0", task="sft", question=_bare(prompting, question), answer=""))
        if opened:
            text = text.removeprefix(special.THINK_BEGIN)
        text = text.lstrip() if ends_in_space else " " + text.lstrip()
        written = [*tokenizer.encode(text, continues=True), tokenizer.eos_id]
        if len(prompt) + len(written) > max_tokens + 1:
            sentence = f"{len(prompt) + len(written)} tokens exceed {max_tokens + 1}; raise sequence_length"
            report.add(RowProblem("too_long", conversation.place, sentence))
            continue
        report.used += 1
        learned = [False] * len(prompt) + [True] * len(written)
        samples.append(Sample([*prompt, *written], learned, key=conversation.key))
    if not samples:
        raise DataError(f"conversations: none of {report.read} can be used ({report.first}); fix or add some")
    return samples


def _conversations(
    source: ConversationSource, step: SftStep, context: StepContext, tokenizer: Tokenizer, report: RowReport
) -> Iterator[Conversation]:
    match source:
        case ConversationFile():
            columns = Columns(source.format, source.fields)
            yield from read_conversations(context.plan.data_path(source.path), report, columns)
        case KeptAnswers():
            answers = named_step(context.recipe, step, source.step, AnswersStep, "data.step")
            yield from read_conversations(context.path(answers) / CONVERSATIONS, report, Columns("messages"))
        case WorkedProblems():
            yield from _worked(source, PromptFormatter(tokenizer, step.prompt), context, report)


def _worked(
    source: WorkedProblems, prompt_formatter: PromptFormatter, context: StepContext, report: RowReport
) -> Iterator[Conversation]:
    problems = opened_problems(source.problems, context)
    for problem in problems.problems("train", 0, source.count, seed=source.seed):
        solution = problem.details.get("solution")
        if not solution:
            sentence = "has no worked solution; use other problems, or give details.solution"
            report.add(RowProblem("nothing_learned", problem.id, sentence))
            continue
        answer = {"role": "assistant", "content": problem.answer}
        if _share(problem.id, source.seed) < source.reasoned:
            answer[REASONING] = solution
        yield Conversation(messages=(*prompt_formatter.messages(problem), answer), place=problem.id)


def _share(name: str, seed: int) -> float:
    """Return a number from 0 to 1 that depends on a name and a seed alone."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _bare(prompting: TextPrompt, asked: str) -> str:
    """Return the question of a user's message that may be the whole prompt already."""
    before, _, after = (prompting.text or R1_ZERO).partition(QUESTION_PLACEHOLDER)
    whole = asked.startswith(before) and asked.endswith(after)
    return asked[len(before) : len(asked) - len(after)] if whole else asked


def _question_and_answer(conversation: Conversation) -> tuple[str, str]:
    """Return what the user asks, and the last answer as text with its reasoning and itself in their tags."""
    asked = next((str(m["content"]) for m in reversed(conversation.messages) if m["role"] == "user"), "")
    answer = normalize_messages(conversation.messages[-1:], "keep")[0]
    reasoning, content = answer.get(REASONING), str(answer["content"])
    text = content if "<answer>" in content else f"<answer> {content} </answer>"
    return asked, f"{special.THINK_BEGIN} {reasoning} {special.THINK_END} {text}" if reasoning else text


def _name(source: ConversationSource) -> str:
    match source:
        case ConversationFile():
            return Path(source.path).name
        case KeptAnswers():
            return source.step
        case WorkedProblems():
            return source.problems.name
