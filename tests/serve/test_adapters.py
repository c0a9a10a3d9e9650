"""Adapters of one served model, chosen by name, through OpenAI's client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from fathom.checkpoint.peft import write_peft
from fathom.cli.served_models import NamedModel, add_adapters, named_models, with_adapters
from fathom.errors import SpecError
from fathom.inference.language_model import LanguageModel
from fathom.serve.model_pool import ModelPool
from fathom.serve.settings import ServeSettings
from fathom.spec.adapter import LoraSpec
from fathom.spec.engine import EngineSpec
from tests.checkpoint.peft.test_peft import trained
from tests.serve.serving import NAME, serving, with_engine

ENGINE = EngineSpec(max_batch=8, cache_tokens=4096, page_size=16)
ASKED = "The river finds the road"


def test_each_name_answers_as_its_merged_model_and_all_at_once(
    opened: LanguageModel, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = {"one": LoraSpec(rank=2, alpha=16.0), "two": LoraSpec(rank=3, alpha=24.0, targets=("experts", "kv_b_proj"))}
    given = [
        f"{name}={write_peft(tmp_path / name, opened.spec, trained(opened.model, lora))}"
        for name, lora in specs.items()
    ]
    [named] = with_adapters([NamedModel(NAME, str(directory))], given)
    model = with_engine(opened, ENGINE)
    add_adapters(model, named)
    assert [line.split(" bytes")[0].split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "adapter one",
        "adapter two",
    ]
    base = {p.data_ptr() for p in opened.model.parameters()}
    assert base <= {p.data_ptr() for p in model.engine.decoder("one").parameters()}
    pool = ModelPool.of(NAME, model, ServeSettings(drain_seconds=5.0), adapters=[name for name, _ in named.adapters])
    expected = {
        name: LanguageModel.open(directory, device="cpu", adapter=path).generate(ASKED, max_tokens=9, temperature=0.0)
        for name, path in named.adapters
    }
    expected[NAME] = opened.generate(ASKED, max_tokens=9, temperature=0.0)
    with serving(pool) as server, server.client() as client, ThreadPoolExecutor(6) as threads:
        cards = {card.id: card.model_dump()["parent"] for card in client.models.list()}
        assert cards == {NAME: None, "one": NAME, "two": NAME}

        def ask(name: str) -> tuple[str, str]:
            answer = client.completions.create(model=name, prompt=ASKED, max_tokens=9, temperature=0.0)
            return answer.model, answer.choices[0].text

        names = [NAME, "one", "two"] * 3
        for name, (called, text) in zip(names, threads.map(ask, names), strict=True):
            assert called == name
            assert text == expected[name].text, name
        vectors = [client.embeddings.create(model=name, input=ASKED).data[0].embedding for name in (NAME, "one")]
        assert vectors[0] != vectors[1]
        with pytest.raises(openai.NotFoundError, match=f"use one of '{NAME}', 'one', 'two'"):
            ask("three")
    assert len({answer.text for answer in expected.values()}) == 3


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["x"], "'x' is not NAME=DIRECTORY"),
        (["tiny=x"], "'tiny' is taken"),
        (["a=x", "a=y"], "'a' is taken"),
    ],
)
def test_names_that_cannot_be_served_are_refused(given: list[str], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        with_adapters([NamedModel("tiny", "somewhere")], given)


def test_several_models_take_no_adapters() -> None:
    with pytest.raises(SpecError, match="2 models are served"):
        with_adapters(named_models(["a=x", "b=y"], None, ()), ["c=z"])
