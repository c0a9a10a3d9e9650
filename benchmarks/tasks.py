"""Scores on public tasks, ours and transformers' with the same weights and the very same prompts.

Choices: both compute every log-likelihood. Word problems: Fathom answers all, both answer the first ``--problems``,
greedily, transformers one at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks import peers
from fathom.cli.display import make_display
from fathom.cli.options import cache_directory
from fathom.evals.accuracy import Accuracy
from fathom.evals.multiple_choice import Question
from fathom.evals.task_cases import ChoiceCase, ProblemCase, Task, read_cases, tasks
from fathom.evals.word_problems import final_number, same_number
from fathom.inference.catalog import catalog, fetch_named
from fathom.inference.language_model import LanguageModel
from fathom.inference.task_runs import TaskResult, choice_questions, problem_prompts, run_task


def transformers_model(file: Path) -> PreTrainedModel:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def their_logprobs(model: PreTrainedModel, question: Question) -> list[float]:
    """Score each choice by a pass over the whole text; choices are padded at their ends."""
    context, choices = list(question.context_ids), [list(choice) for choice in question.choices_ids]
    longest = max(map(len, choices))
    rows = [context + choice[:-1] + [0] * (longest - len(choice)) for choice in choices]
    hidden_CTD = model.model(torch.tensor(rows)).last_hidden_state[:, len(context) - 1 :]
    found = []
    for hidden_TD, choice in zip(hidden_CTD, choices, strict=True):
        logprobs_TV = model.lm_head(hidden_TD[: len(choice)]).log_softmax(-1)
        found.append(float(logprobs_TV[range(len(choice)), choice].sum()))
    return found


def best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def compare_choices(
    ours: LanguageModel, theirs: PreTrainedModel, result: TaskResult, cases: Sequence[ChoiceCase]
) -> dict[str, object]:
    right, by_bytes, agree, difference = [], [], 0, 0.0
    for case, question, record in zip(cases, choice_questions(ours.tokenizer, cases), result.records, strict=True):
        with torch.inference_mode():
            logprobs = their_logprobs(theirs, question)
        chosen = best(logprobs)
        chosen_by_bytes = best([value / size for value, size in zip(logprobs, question.choice_bytes, strict=True)])
        right.append(chosen == case.answer)
        by_bytes.append(chosen_by_bytes == case.answer)
        agree += (chosen, chosen_by_bytes) == (record["chosen"], record["chosen_by_bytes"])
        pairs = zip(logprobs, record["logprobs"], strict=True)
        difference = max(difference, *(abs(one - other) for one, other in pairs))
    return {
        "fathom": result.summary(),
        "transformers": {"accuracy": Accuracy.of(right).value, "accuracy_by_bytes": Accuracy.of(by_bytes).value},
        "same_choices": agree,
        "largest_logprob_difference": difference,
    }


def compare_problems(
    ours: LanguageModel, theirs: PreTrainedModel, result: TaskResult, cases: Sequence[ProblemCase], count: int
) -> dict[str, object]:
    tokenizer, task = ours.tokenizer, result.task
    compared = list(
        zip(cases, problem_prompts(tokenizer, task, cases, chat=tokenizer.can_chat), result.records, strict=True)
    )[:count]
    same_text = same_result = 0
    right: list[bool] = []
    for case, prompt, record in compared:
        prompt_1T = torch.tensor([prompt])
        drawn = theirs.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            max_new_tokens=task.max_tokens,
            do_sample=False,
            eos_token_id=sorted(ours.eos_ids),
            pad_token_id=tokenizer.pad_id,
        )
        text = tokenizer.decode(drawn[0, len(prompt) :].tolist())
        number = final_number(text)
        same_text += text == record["answer"]
        same_result += number == record["number"]
        right.append(same_number(number, case.answer))
    return {
        "fathom": result.summary(),
        "compared": len(compared),
        "same_texts": same_text,
        "same_numbers": same_result,
        "right_of_compared": {
            "fathom": sum(bool(record["correct"]) for _, _, record in compared),
            "transformers": sum(right),
        },
    }


def measure(name: str, file: Path, chosen: Sequence[Task], limit: int | None, problems: int) -> dict[str, object]:
    cache, display = cache_directory(), make_display(Console(stderr=True))
    ours = LanguageModel.open(file, device="cpu", weights="plain", dtype="float32")
    theirs = transformers_model(file)
    found: dict[str, object] = {}
    for index, task in enumerate(chosen, start=1):
        display.stage(task.name, index, len(chosen))
        result = run_task(ours, task, cache_dir=cache, limit=limit, progress=display)
        display.finish(result.seconds)
        cases = read_cases(task, cache)[:limit]
        asked = [case for case in cases if isinstance(case, ProblemCase)]
        if asked:
            found[task.name] = compare_problems(ours, theirs, result, asked, problems)
        else:
            choices = [case for case in cases if isinstance(case, ChoiceCase)]
            found[task.name] = compare_choices(ours, theirs, result, choices)
        print(task.name, found[task.name], flush=True)
    display.close()
    return {"model": name, "tasks": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", choices=list(catalog()))
    parser.add_argument("--task", action="append", choices=list(tasks()))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    file = fetch_named(catalog()[a.model], cache_directory())
    chosen = [tasks()[name] for name in a.task or tasks()]
    peers.write(f"tasks-{a.model}", measure(a.model, file, chosen, a.limit, a.problems), a.out)


if __name__ == "__main__":
    main()
