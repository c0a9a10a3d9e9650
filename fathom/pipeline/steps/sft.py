"""The sft step: supervised fine-tuning on conversations, kept answers and worked problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
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
from fathom.files import file_sha256, sha256, write_json
from fathom.pipeline.context import StepContext, named_step
from fathom.pipeline.problem_sources import opened_problems
from fathom.pipeline.run_models import trained_model
from fathom.pipeline.steps.epoch_training import log_report, train_epochs
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
    samples = EncodedSamples()
    counts = []
    for index, source in enumerate(step.data):
        found, report = _cached_source(index, source, step, context, start.tokenizer)
        log_report(context, _name(source), report, "conversations")
        repeat = 1 if isinstance(source, WorkedProblems) else source.repeat
        samples.extend(found, repeat)
        counts.append(
            {"source": _name(source), "used": report.used, "repeat": repeat, "left_out": dict(report.problems)}
        )
    train = step.train
    loader = ConversationLoader(samples, sequence_length=train.sequence_length, seed=train.seed, packing=train.packing)
    context.path(step).mkdir(parents=True, exist_ok=True)
    document = {
        "samples": loader.samples,
        "tokens": loader.tokens_per_epoch,
        "learned": loader.trainable_tokens_per_epoch,
    }
    write_json(context.path(step) / DATA, document | {"sources": counts})
    train_epochs(step, context, start, loader)


def _cached_source(
    index: int, source: ConversationSource, step: SftStep, context: StepContext, tokenizer: Tokenizer
) -> tuple[EncodedSamples, RowReport]:
    """Return what ``read_source`` does, from the step's directory unless anything it depends on has changed."""

    def encode() -> dict[str, torch.Tensor]:
        samples, report = read_source(source, step, context, tokenizer)
        text = json.dumps(report.to_json()).encode()
        return EncodedSamples.of(samples).tensors() | {"report": torch.tensor(list(text), dtype=torch.uint8)}

    found = cached_tensors(
        context.path(step) / f"samples-{index}.safetensors", _source_key(source, step, context, tokenizer), encode
    )
    report = RowReport.from_json(json.loads(bytes(found["report"].tolist())))
    return EncodedSamples.from_tensors(found), report


def _source_key(source: ConversationSource, step: SftStep, context: StepContext, tokenizer: Tokenizer) -> str:
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
        step.train.sequence_length,
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
    source: ConversationSource, step: SftStep, context: StepContext, tokenizer: Tokenizer
) -> tuple[list[Sample], RowReport]:
    """Return a source's samples and a report of its conversations.

    Worked problems and kept answers are asked as ``step.prompt`` says; a file's conversations are as they are.

    Raises:
        DataError: the source cannot be read, or nothing of it can be used.
    """
    report = RowReport()
    conversations = _conversations(source, step, context, tokenizer, report)
    if isinstance(step.prompt, TextPrompt) and not isinstance(source, ConversationFile):
        return as_texts(tokenizer, step.prompt, conversations, report, max_tokens=step.train.sequence_length), report
    hides = isinstance(step.prompt, ChatPrompt) and step.prompt.thinking == "closed"
    samples = encode_conversations(
        tokenizer,
        conversations,
        report,
        max_tokens=step.train.sequence_length,
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
        samples.append(Sample([*prompt, *written], [False] * len(prompt) + [True] * len(written)))
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
