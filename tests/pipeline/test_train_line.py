"""Train steps with a beginning of their own: a student of another shape, or a model that another run made."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.checkpoint import store
from fathom.errors import SpecError
from fathom.files import fingerprint
from fathom.inference.language_model import LanguageModel
from fathom.pipeline.context import RunPlan, model_step, spec_during, train_chain
from fathom.pipeline.recipe import load_run_plan
from fathom.pipeline.run import run
from fathom.pipeline.state import run_plan_mapping, step_inputs

TINY = Path(__file__).with_name("tiny.toml")
STUDENT = """
[[steps]]
kind = "train"
name = "student"
[steps.model]
name = "student"
family = "llama"
vocab_size = 384
hidden_size = 24
num_hidden_layers = 1
max_position_embeddings = 64
intermediate_size = 48
attention = { kind = "gqa", num_heads = 2, num_kv_heads = 1, head_dim = 16 }
[steps.train]
sequence_length = 64
total_tokens = 1024
batch = { size = 2, micro_batch_size = 2 }
optimizer = { lr = 3e-3 }

[[steps]]
kind = "train"
name = "further"
[steps.train]
sequence_length = 32
total_tokens = 512
batch = { size = 2, micro_batch_size = 2 }
optimizer = { lr = 1e-3 }

[[steps]]
kind = "evaluate"
name = "of-student"
max_tokens = 256
"""
FEWER = ("pretrain.train.total_tokens=768", "stretch.train.total_tokens=384", "evaluate.max_tokens=256")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(40):
        text = f"The river number {index} runs to the sea. A quiet road follows it by the hill {index * 7}. " * 4
        (folder / f"{index}.txt").write_text(text)
    return folder


def plan_of(tmp_path: Path, texts: Path, *overrides: str, extra: str = STUDENT) -> RunPlan:
    recipe = tmp_path / "two.toml"
    before, _, needle_on = TINY.read_text().partition('[[steps]]\nkind = "needle"')
    assert needle_on
    recipe.write_text(before + extra)
    return load_run_plan(recipe, overrides=[*FEWER, *overrides], text=[texts])


def test_a_student_is_drawn_anew_and_goes_on_from_itself(tmp_path: Path, texts: Path) -> None:
    plan = plan_of(tmp_path, texts)
    out = tmp_path / "run"
    run(plan, out, cache_dir=tmp_path / "cache", until="further")
    student = LanguageModel.open(out / "further", device="cpu")
    teacher = LanguageModel.open(out / "stretch", device="cpu")
    assert (student.spec.name, student.spec.hidden_size, student.spec.max_position_embeddings) == ("student", 24, 64)
    assert student.spec.eos_token_id == teacher.tokenizer.eos_id
    assert student.tokenizer.fingerprint == teacher.tokenizer.fingerprint
    assert LanguageModel.open(out, device="cpu").spec.name == "student"
    ends = [store.latest(out / name / "checkpoints") for name in ("student", "further")]
    first, second = (store.Checkpoint.open(end).tensors("model") for end in ends if end is not None)
    name = "layers.0.self_attn.q_proj.weight"
    moved = (second[name] - first[name]).abs().max()
    assert 0 < moved < 0.05
    run(plan, out, cache_dir=tmp_path / "cache", resume=True)
    assert (out / "of-student.json").exists()


def test_steps_know_which_model_they_are_about(tmp_path: Path, texts: Path) -> None:
    recipe = plan_of(tmp_path, texts).recipe
    steps = {step.name: step for step in recipe.steps}
    lines = {name: [stage.name for stage in train_chain(recipe, step)] for name, step in steps.items()}
    assert lines["stretch"] == lines["evaluate"] == ["pretrain", "stretch"]
    assert lines["student"] == ["student"]
    assert lines["further"] == lines["of-student"] == ["student", "further"]
    models = {name: spec_during(recipe, steps[name]) for name in ("evaluate", "of-student")}
    assert {name: (model.name, model.max_position_embeddings) for name, model in models.items() if model} == {
        "evaluate": ("tiny", 192),
        "of-student": ("student", 64),
    }
    assert model_step(recipe, steps["of-student"]).name == "further"


def test_only_a_students_own_steps_depend_on_its_model(tmp_path: Path, texts: Path) -> None:
    def prints(*overrides: str) -> dict[str, str]:
        plan = plan_of(tmp_path, texts, *overrides)
        mapping = run_plan_mapping(plan)
        return {step.name: fingerprint(step_inputs(mapping, plan.recipe, step)) for step in plan.recipe.steps}

    old = prints()
    student = prints("student.model.hidden_size=32")
    assert [name for name in old if old[name] != student[name]] == ["student", "further"]
    teacher = prints("model.intermediate_size=96")
    assert [name for name in old if old[name] != teacher[name]] == ["pretrain", "stretch"]
    plan = plan_of(tmp_path, texts)
    built = {
        step.name: step_inputs(run_plan_mapping(plan), plan.recipe, step)["builds_on"]
        for step in plan.recipe.steps[-3:]
    }
    made = ["corpus", "tokenizer", "shards"]
    assert built == {"student": made, "further": [*made, "student"], "of-student": [*made, "further"]}


def test_a_student_may_be_a_preset(tmp_path: Path, texts: Path) -> None:
    start, _, rest = STUDENT.partition("[steps.model]")
    preset = start + '[steps.model]\npreset = "bench-t"\nvocab_size = 384\n' + rest[rest.index("[steps.train]") :]
    plan = plan_of(tmp_path, texts, extra=preset)
    step = next(step for step in plan.recipe.steps if step.name == "student")
    model = spec_during(plan.recipe, step)
    assert model is not None
    assert model.vocab_size == 384
    with pytest.raises(SpecError, match=r"steps\[6\]\.model\.preset: no preset is called 'bench-x'"):
        plan_of(tmp_path, texts, "student.model.preset=bench-x", extra=preset)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "student.model.vocab_size=320",
            r"steps\[6\]\.model\.vocab_size: the tokenizer's 384 exceeds .* 320",
        ),
        ("student.train.sequence_length=65", r"steps\[6\]\.train\.sequence_length: 65 exceeds the context of 64"),
        ("further.train.sequence_length=192", r"steps\[7\]\.train\.sequence_length: 192 exceeds the context of 64"),
    ],
)
def test_a_student_that_does_not_fit_is_located(tmp_path: Path, texts: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_of(tmp_path, texts, override)


def test_a_student_takes_the_tokenizer_of_an_opened_model(tmp_path: Path, texts: Path) -> None:
    run(plan_of(tmp_path, texts, extra=""), tmp_path / "teacher", cache_dir=tmp_path / "cache", until="pretrain")
    recipe = tmp_path / "student.toml"
    head = 'name = "student"\n[[steps]]\nkind = "open"\nmodel = "teacher"\n[[steps]]\nkind = "corpus"\nmanifest = "x"\n'
    recipe.write_text(head + '[[steps]]\nkind = "shards"\n' + STUDENT)
    plan = load_run_plan(recipe, text=[texts])
    run(plan, tmp_path / "run", cache_dir=tmp_path / "cache")
    opened = [LanguageModel.open(tmp_path / path, device="cpu") for path in ("teacher", "run", "run/student")]
    assert len({model.tokenizer.fingerprint for model in opened}) == 1
    assert opened[1].spec.name == "student"
    small = load_run_plan(recipe, text=[texts], overrides=["student.model.vocab_size=300"])
    with pytest.raises(SpecError, match=r"steps\.student: the tokenizer's \d+ exceeds model\.vocab_size 300"):
        run(small, tmp_path / "small", cache_dir=tmp_path / "cache")


CONTINUED = """
name = "continued"
[[steps]]
kind = "open"
model = "teacher"
[[steps]]
kind = "corpus"
manifest = "x"
[[steps]]
kind = "shards"
[[steps]]
kind = "train"
name = "further"
start = "base"
max_position_embeddings = 192
rope_scaling = { kind = "yarn", factor = 4.0, original_max_position_embeddings = 48 }
[steps.train]
sequence_length = 128
total_tokens = 512
batch = { size = 2, micro_batch_size = 2 }
optimizer = { lr = 1e-4, weight_decay = 0.0 }
[[steps]]
kind = "train"
name = "last"
[steps.train]
sequence_length = 192
total_tokens = 384
batch = { size = 1, micro_batch_size = 1 }
optimizer = { lr = 1e-4, weight_decay = 0.0 }
[[steps]]
kind = "evaluate"
max_tokens = 256
[[steps]]
kind = "report"
"""


@pytest.fixture
def continued(tmp_path: Path, texts: Path) -> Path:
    """Return the recipe of a run that goes on with another's model."""
    run(plan_of(tmp_path, texts, extra=""), tmp_path / "teacher", cache_dir=tmp_path / "cache", until="pretrain")
    recipe = tmp_path / "continued.toml"
    recipe.write_text(CONTINUED)
    return recipe


def test_training_goes_on_with_an_opened_model(tmp_path: Path, texts: Path, continued: Path) -> None:
    plan, out = load_run_plan(continued, text=[texts]), tmp_path / "run"
    run(plan, out, cache_dir=tmp_path / "cache")
    models = [LanguageModel.open(path, device="cpu") for path in (tmp_path / "teacher", out / "further", out)]
    assert [model.spec.max_position_embeddings for model in models] == [48, 192, 192]
    assert models[1].spec.rope.scaling is not None
    assert models[2].spec.rope.scaling == models[1].spec.rope.scaling
    weights = [model.model.state_dict()["embed_tokens.weight"] for model in models]
    assert 0 < (weights[1] - weights[0]).abs().max() < 0.01  # 4 steps of 1e-4 from the teacher's
    assert 0 < (weights[2] - weights[1]).abs().max() < 0.01
    steps = {step.name: step for step in plan.recipe.steps}
    assert spec_during(plan.recipe, steps["last"]) is None
    assert [step.name for step in train_chain(plan.recipe, steps["evaluate"])] == ["further", "last"]
    mapping = run_plan_mapping(plan)
    assert "base" in step_inputs(mapping, plan.recipe, steps["further"])["builds_on"]
    assert "further" in step_inputs(mapping, plan.recipe, steps["last"])["builds_on"]
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("further.start=bas", r"steps\.further\.start: no step 'bas' before it can be taken; use one of base"),
        ("further.start=last", r"steps\.further\.start: no step 'last' before it .* use one of base"),
        ("further.train.sequence_length=193", r"sequence_length: 193 exceeds the context of 192"),
        ("further.model.preset=bench-t", r"steps\[3\]\.start: 'base' has a model, and so has this step"),
    ],
)
def test_a_start_that_cannot_be_is_named(continued: Path, texts: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_run_plan(continued, text=[texts], overrides=[override])


def test_a_sequence_longer_than_the_opened_models_context_is_refused(
    tmp_path: Path, texts: Path, continued: Path
) -> None:
    continued.write_text(
        "\n".join(
            line
            for line in CONTINUED.splitlines()
            if "max_position_embeddings = 192" not in line and "rope_s" not in line
        )
    )
    plan = load_run_plan(continued, text=[texts])
    with pytest.raises(SpecError, match=r"steps\.further\.train\.sequence_length: 128 exceeds the context of 48"):
        run(plan, tmp_path / "run", cache_dir=tmp_path / "cache")
