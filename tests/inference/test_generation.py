"""``LanguageModel.generate`` and ``chat`` on texts, lists of texts, and what is neither."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fathom
from fathom.engine.request import Request
from fathom.errors import ContextError, DataError, FathomError, SpecError
from fathom.inference.language_model import LanguageModel
from fathom.kernels.native import library
from fathom.spec import EngineSpec, SamplingParams

TEXTS = ["the dog", "a quick brown fox", "the"]
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0}


@pytest.fixture(scope="module")
def model(publish: Callable[[str], Path]) -> LanguageModel:
    return fathom.load(publish("tiny-llama"), dtype="float32")


def ids(model: LanguageModel, text: str) -> list[int]:
    return [*model.tokenizer.prefix_ids, *model.tokenizer.encode(text)]


def test_texts_are_continued_together_as_each_alone_and_as_their_tokens(model: LanguageModel) -> None:
    together = model.generate(TEXTS, **GREEDY)
    for text, found in zip(TEXTS, together, strict=True):
        tokens = model.generate(ids(model, text), SamplingParams(**GREEDY))
        assert list(found.token_ids) == tokens
        assert found.text == model.tokenizer.decode(tokens, continues=True)
        assert str(found) == found.text
        alone = model.generate(text, SamplingParams(**GREEDY))
        assert (alone.text, alone.token_ids, alone.finish_reason) == (found.text, found.token_ids, found.finish_reason)
        assert alone.logprobs == pytest.approx(found.logprobs, abs=1e-4)
        assert found.usage.prompt_tokens == len(ids(model, text))
        assert found.usage.completion_tokens == len(tokens)


def test_log_probabilities_are_those_of_the_logits(model: LanguageModel) -> None:
    found = model.generate("the dog", **GREEDY, logprobs=2)
    prompt = ids(model, "the dog")
    expected = model.logits([*prompt, *found.token_ids]).log_softmax(-1)
    for at, (token, logprob) in enumerate(zip(found.token_ids, found.logprobs, strict=True)):
        assert logprob == pytest.approx(float(expected[len(prompt) - 1 + at, token]), abs=1e-4)
    assert [len(detail.top) for detail in found.details] == [2] * len(found.token_ids)


def test_stop_strings_and_seeds(model: LanguageModel) -> None:
    whole = model.generate("the dog", **GREEDY).text
    stop = whole[2:4]
    cut = model.generate("the dog", **GREEDY, stop=stop)
    assert (cut.text, cut.finish_reason) == (whole.partition(stop)[0], "stop")
    drawn = [model.generate("the dog", max_tokens=6, seed=4).token_ids for _ in range(2)]
    assert drawn[0] == drawn[1] == tuple(model.generate(ids(model, "the dog"), max_tokens=6, seed=4))


def test_conversations_are_answered_together_as_each_alone(model: LanguageModel) -> None:
    def tokens(answers: list[fathom.ChatAnswer]) -> list[tuple[int, ...]]:
        assert all(len(answer.token_ids) == len(answer.logprobs) > 0 for answer in answers)
        return [answer.token_ids for answer in answers]

    alone = tokens([model.chat(text, **GREEDY) for text in TEXTS])
    assert tokens(model.chat(TEXTS, **GREEDY)) == alone
    assert tokens(model.chat([[{"role": "user", "content": text}] for text in TEXTS], **GREEDY)) == alone
    with_system = model.chat(TEXTS[0], system="the fox", **GREEDY)
    assert tokens(model.chat(TEXTS[:1], system="the fox", **GREEDY)) == [with_system.token_ids] != alone[:1]


def test_more_requests_than_places_are_all_answered_in_order(model: LanguageModel) -> None:
    small = LanguageModel(
        model.model, model.tokenizer, model.path, model.eos_ids, engine=EngineSpec(max_batch=2, cache_tokens=256)
    )
    texts = [TEXTS[index % 3] for index in range(9)]
    once = {text: model.generate(text, **GREEDY).token_ids for text in TEXTS}
    assert [found.token_ids for found in small.generate(texts, **GREEDY)] == [once[text] for text in texts]
    assert (small.engine.has_work, small.engine.leaked_pages) == (False, 0)


def test_a_run_that_is_left_cancels_what_it_holds(model: LanguageModel) -> None:
    engine = model.engine
    requests = (Request(prompt=(5, 9), params=SamplingParams(max_tokens=9, ignore_eos=True)) for _ in range(3))
    running = engine.run(requests)
    assert next(running)[0] == 0
    assert engine.has_work
    running.close()
    assert not engine.has_work
    assert engine.leaked_pages == 0


WRONG: dict[str, tuple[Callable[[LanguageModel], Any], type[FathomError], str]] = {
    "role": (
        lambda m: m.chat([{"role": "usr", "content": "x"}]),
        DataError,
        r"messages\[0\]\.role: unknown role 'usr'; did you mean user\?",
    ),
    "former role": (lambda m: m.chat([{"role": "gpt", "content": "x"}]), DataError, "did you mean assistant"),
    "one message": (lambda m: m.chat({"role": "user", "content": "x"}), DataError, "is one message; give a list"),  # type: ignore[arg-type, call-overload]
    "a number": (lambda m: m.chat(5), DataError, "is int; give a text, or a list"),  # type: ignore[call-overload]
    "numbers": (lambda m: m.chat([5]), DataError, r"messages\[0\]: is int and no message"),  # type: ignore[call-overload]
    "no content": (lambda m: m.chat([{"role": "user", "content": 5}]), DataError, "expected text or a list"),
    "in a list": (
        lambda m: m.chat(["x", [{"role": "usr", "content": "x"}]]),  # type: ignore[list-item]
        DataError,
        r"conversations\[1\]: messages\[0\].role",
    ),
    "streamed lists": (lambda m: m.chat(["x"], stream=True), SpecError, "is for one conversation"),  # type: ignore[call-overload]
    "a conversation": (lambda m: m.generate([{"role": "user"}]), DataError, r"use chat: m\.chat\(messages\)"),  # type: ignore[call-overload]
    "mixed": (lambda m: m.generate(["x", 5]), DataError, "holds str and int; give texts only"),  # type: ignore[call-overload]
    "empty": (lambda m: m.generate(["x", ""]), ContextError, r"prompts\[1\]: prompt: is an empty text"),
    "option": (lambda m: m.generate("x", max_token=5), SpecError, "did you mean max_tokens"),  # type: ignore[call-overload]
    "of texts": (lambda m: m.generate([5, 9], stop="x"), SpecError, "stop: is for texts; give the prompt as a text"),
    "twice": (lambda m: m.generate("x", SamplingParams(), max_tokens=4), SpecError, "max_tokens: is given beside"),
    "a dictionary": (lambda m: m.generate("x", {"max_tokens": 5}), SpecError, "is dict; give SamplingParams"),  # type: ignore[call-overload]
    "a text": (lambda m: m.generate("x", max_tokens="5"), SpecError, "must be above 0, got the text '5'"),  # type: ignore[call-overload]
    "long": (lambda m: m.generate("x " * 500), ContextError, "exceed the context of 128"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_used_is_refused_in_words(model: LanguageModel, wrong: str) -> None:
    call, kind, words = WRONG[wrong]
    with pytest.raises(kind, match=words):
        call(model)
    assert not model.engine.has_work


def test_a_role_that_the_chat_template_names_is_its_own(model: LanguageModel) -> None:
    template = "{% for m in messages %}{% if m.role == 'critic' %}!{% endif %}{{ m.content }}{% endfor %}"
    own = LanguageModel(model.model, model.tokenizer.with_template(template), model.path, model.eos_ids)
    assert own.chat([{"role": "critic", "content": "the dog"}], **GREEDY).usage.prompt_tokens > 0


def test_models_and_tokenizers_say_what_they_are(model: LanguageModel) -> None:
    shown = repr(model)
    for word in ("tiny-llama", "llama", "context 128", "float32 on cpu", str(model.path)):
        assert word in shown
    assert repr(model.tokenizer) == f"<Tokenizer BPE: {model.tokenizer.vocab_size} tokens, with a chat template>"
    packed = "Q8_0" if library.available() else "int8"
    assert f"weights {packed} on cpu" in repr(fathom.load(model.path, dtype="float32", weights="int8"))


def test_the_main_names_are_imported_on_first_use() -> None:
    code = (
        "import fathom, sys; before = 'torch' in sys.modules; fathom.SamplingParams; fathom.EngineSpec; "
        "print(before, 'torch' in sys.modules, set(fathom.__all__) <= set(dir(fathom)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
    names = [name for name in fathom.__all__ if name[0] not in "_l"]
    assert [getattr(fathom, name).__name__ for name in names] == names
    assert fathom.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="no attribute 'SamplingParam'"):
        _ = fathom.SamplingParam
