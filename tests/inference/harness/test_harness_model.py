"""Fathom's models in lm-evaluation-harness, against its model class for transformers on the same directory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fathom
from fathom.errors import DataError
from fathom.inference.harness.responses import Responses
from fathom.spec.sampling import SamplingParams
from fathom.tokenizer import Tokenizer
from tests.command_line import Call
from tests.json_lines import write_json_lines
from tests.published import SPECS, Publish, copy_without_template, train_tokenizer, write_published

pytestmark = pytest.mark.slow  # needs lm-eval, which only `make test-all` installs, and reads its tasks for seconds

WORDS = ["the", "river", "sees", "the", "tower", "finds", "the", "road", "and", "the", "sea", "sees"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published directory with a chat template that both sides render, and without ids that have no token."""
    root = tmp_path_factory.mktemp("chatting")
    train_tokenizer(root / "tokenizer")
    spec = replace(SPECS["tiny-deepseek_v3"], vocab_size=Tokenizer.load(root / "tokenizer").vocab_size)
    folder = root / "model"
    write_published(folder, spec, root / "tokenizer")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def pair(chatting: Path) -> Iterator[tuple[Any, Any]]:
    """Our model and the harness's for transformers, of one directory."""
    pytest.importorskip("lm_eval")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        from fathom.inference.harness.model import HarnessModel

        theirs = HFLM(pretrained=str(chatting), device="cpu", dtype="float32", batch_size=1)
        yield HarnessModel(str(chatting), dtype="float32"), theirs


def asked(arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [SimpleNamespace(args=each, task_name="t") for each in arguments]


def test_log_likelihoods_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    rng = random.Random(3)
    contexts = ["", "The ", *(text(rng, size) for size in (3, 8, 20, 90))]
    requests = asked([(context, f" {text(rng, size)}") for context in contexts for size in (1, 2, 5)])
    found = ours.loglikelihood(requests, disable_tqdm=True)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [each[0] for each in found] == pytest.approx([each[0] for each in expected], abs=1e-4)
    assert [each[1] for each in found] == [each[1] for each in expected]


def test_what_greedy_decoding_gives_is_named_as_transformers_does(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    context = ours.tok_encode("the river sees")
    (greedy,) = ours.language_model.engine.sample([context], SamplingParams(temperature=0.0, max_tokens=2))
    likeliest = list(greedy.token_ids)
    requests = [(("", ""), context, [*likeliest[:before], token]) for before in (0, 1) for token in range(290)]
    found = ours._loglikelihood_tokens(requests)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    assert found == [(pytest.approx(logprob, abs=1e-4), greedy) for logprob, greedy in expected]
    assert [request[2] for request, each in zip(requests, found, strict=True) if each[1]] == [
        likeliest[:1],
        likeliest,
    ]


def test_rolling_log_likelihoods_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    rng = random.Random(4)
    texts = asked([(text(rng, size),) for size in (1, 12, 150, 400)])
    assert len(ours.tok_encode(texts[-1].args[0])) > 2 * ours.max_length
    expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_greedy_texts_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    rng = random.Random(5)
    settings = ({"until": [], "max_gen_toks": 24}, {"until": [" t", "ea"], "max_gen_toks": 30, "do_sample": False})
    requests = asked([(text(rng, size), each) for size in (1, 4, 9, 110) for each in settings])
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests, disable_tqdm=True)
    assert len(set(found)) > 3


def test_prompts_of_chats_are_those_of_transformers(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    chat = [{"role": "user", "content": "the river?"}, {"role": "assistant", "content": "the sea"}]
    for history, adds in ((chat[:1], True), (chat, False)):
        prompt = ours.apply_chat_template(history, add_generation_prompt=adds)
        assert prompt == theirs.apply_chat_template(history, add_generation_prompt=adds)
        assert ours.tok_encode(prompt) == theirs.tok_encode(prompt)
    assert ours.chat_template(True) == theirs.chat_template(True) == TEMPLATE


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of local files: multiple choice and generation."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(6)
    rows = [{"q": f"{text(rng, 3)}?", "choices": [text(rng, n) for n in (1, 2, 4)], "gold": i % 3} for i in range(5)]
    write_json_lines(folder / "rows.jsonl", rows)
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
fewshot_split: test
doc_to_text: "Question: {{{{q}}}}\\nAnswer:"
"""
    metric = "{metric: %s, aggregation: mean, higher_is_better: true}"
    choice = f"output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\n{shared}"
    (folder / "own_choice.yaml").write_text(f"task: own_choice\n{choice}metric_list: [{metric % 'acc'}]\n")
    answer = 'output_type: generate_until\ndoc_to_target: "{{choices[gold]}}"\n'
    limits = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}\n'
    written = f"task: own_text\n{answer}{shared}{limits}metric_list: [{metric % 'exact_match'}]\n"
    (folder / "own_text.yaml").write_text(written)
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the datasets library writes out of the user's cache, and its warnings out of the way."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def evaluate(model: Path, tasks: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("evaluate", model, "--lm-eval", "own_choice,own_text", "--include-path", tasks, *more)


@pytest.mark.filterwarnings("ignore")
def test_own_tasks_become_a_table_and_files(call: Call, chatting: Path, tasks: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "r.json", tmp_path / "r.jsonl"
    chat = ("--num-fewshot", "1", "--limit", "3", "--apply-chat-template")
    done = call(*evaluate(chatting, tasks, *chat, "--out", out, "--out", lines))
    assert done.code == 0, done.err
    document, samples = json.loads(out.read_text()), [json.loads(line) for line in lines.read_text().splitlines()]
    scores = [row["acc"] for row in samples if row["task"] == "own_choice"]
    assert len(scores) == 3
    assert document["results"]["own_choice"]["acc,none"] == pytest.approx(sum(scores) / 3)
    spread = (sum((score - sum(scores) / 3) ** 2 for score in scores) / 2 / 3) ** 0.5
    assert document["results"]["own_choice"]["acc_stderr,none"] == pytest.approx(spread)
    assert "own_choice" in done.out
    assert "±" in done.out
    prompt = samples[0]["arguments"][0][0]
    assert prompt.count("assistant: ") == 2
    assert prompt.startswith(fathom.load(chatting).tokenizer.id_to_token(0) + "user: Question: ")
    assert not list(tmp_path.glob("*.journal*"))


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_run_goes_on(
    call: Call, chatting: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert call(*evaluate(chatting, tasks, "--out", whole)).code == 0
    keep, made = Responses.keep, list[Any]()

    def counted(self: Responses, method: str, arguments: Any, answer: Any) -> None:
        keep(self, method, arguments, answer)
        made.append(answer)
        if len(made) == 17:
            raise KeyboardInterrupt

    monkeypatch.setattr(Responses, "keep", counted)
    stopped = call(*evaluate(chatting, tasks, "--out", out))
    assert (stopped.code, out.exists()) == (130, False)
    assert call(*evaluate(chatting, tasks, "--out", out)).code == 0
    assert len(made) == 5 * 3 + 5
    left, right = ([json.loads(line) for line in path.read_text().splitlines()] for path in (out, whole))
    assert left == right


@pytest.mark.filterwarnings("ignore")
def test_what_the_harness_cannot_be_asked_is_refused(call: Call, chatting: Path, tasks: Path, tmp_path: Path) -> None:
    base = ("evaluate", chatting, "--include-path", tasks)
    call(*base).refused("--include-path: is about --lm-eval")
    call(*base, "--lm-eval", "own_choise").refused("there is no task 'own_choise'", "did you mean own_choice")
    call(*base, "--lm-eval", ",").refused("--lm-eval: names no task")
    call(*base, "--lm-eval", "own_text", "--task", "gsm8k").refused("--task: is not about --lm-eval")
    call(*base, "--lm-eval", "own_text", "--out", tmp_path / "t.csv").refused("end it with .json, .jsonl or .md")
    call(*base, "--lm-eval", "own_text", "--num-fewshot", "-1").refused("--num-fewshot: -1")
    call("evaluate", chatting, "--lm-eval", "x", "--include-path", tmp_path / "no").refused("there is no such folder")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "t.yaml").write_text((tasks / "own_text.yaml").read_text().replace("rows.jsonl", "absent.jsonl"))
    refused = call(
        "evaluate", chatting, "--include-path", broken, "--lm-eval", "own_text", "--out", tmp_path / "o.json"
    )
    assert refused.code == 2
    assert "--lm-eval own_text: cannot be run" in refused.err.splitlines()[-1]
    assert not (tmp_path / "o.json").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_a_chat_template_is_refused_before_anything_runs(
    call: Call, chatting: Path, bare: Path, tasks: Path
) -> None:
    two = ("evaluate", chatting, bare, "--lm-eval", "own_text", "--include-path", tasks, "--apply-chat-template")
    call(*two).refused(f"{bare}: has no chat template; leave --apply-chat-template out")
    assert call(*two[:1], *two[2:-1], "--limit", "1").code == 0
    from fathom.inference.harness.model import HarnessModel

    with pytest.raises(DataError, match="has no chat template"):
        HarnessModel(str(bare)).apply_chat_template([{"role": "user", "content": "a"}])


@pytest.fixture(scope="module")
def bare(publish: Publish, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_without_template(publish("tiny-llama"), tmp_path_factory.mktemp("bare") / "model")
