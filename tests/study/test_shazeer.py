"""The experiment on Shazeer et al. 2017: its text, its model, what it writes and what it claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fathom.errors import DataError
from fathom.study import registry
from fathom.study.shazeer.corpus import Corpus, windows
from fathom.study.shazeer.layer import Layout
from fathom.study.shazeer.model import MoELanguageModel
from fathom.study.shazeer.table import PAPER_ORDER, claims


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty small modules."""
    for index in range(20):
        (tmp_path / f"m{index:02}.py").write_text(f"name_{index} = {index}\n" * 40, encoding="utf-8")
    return tmp_path


def test_every_tenth_module_is_held_out(folder: Path) -> None:
    corpus = Corpus.read(300, folder=folder)
    assert corpus.files == 20
    assert corpus.train_bytes == sum(len(path.read_bytes()) for path in folder.glob("m?[1-9].py"))
    again = Corpus.read(300, folder=folder)
    assert torch.equal(again.train, corpus.train)
    assert again.sha256 == corpus.sha256
    assert int(corpus.train.max()) < corpus.vocabulary
    (folder / "m10.py").write_text("changed\n" * 60)
    assert Corpus.read(300, folder=folder).sha256 != corpus.sha256


def test_a_python_without_its_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Python sources"):
        Corpus.read(300, folder=tmp_path)


def test_windows_are_followed_by_their_targets() -> None:
    tokens, targets = windows(torch.arange(100), 6, 10, torch.Generator().manual_seed(0))
    assert torch.equal(tokens + 1, targets)
    assert tokens.shape == (6, 10)
    assert int(targets.max()) <= 99


def test_the_model_is_two_lstms_around_a_sigmoid_of_the_mixture_each_with_a_residual() -> None:
    torch.manual_seed(0)
    model = MoELanguageModel(30, 8, 6, Layout(5, 2), dropout=0.4).eval()
    torch.nn.init.normal_(model.mixture.gate.weight)
    tokens = torch.randint(30, (2, 7))
    logits, gates = model(tokens)
    x = model.embedding.weight[tokens]
    x = x + model.first(x)[0]
    x = x + torch.sigmoid(model.mixture(x.reshape(14, 8))[0]).view(2, 7, 8)
    x = x + model.second(x)[0]
    torch.testing.assert_close(logits, x @ model.softmax.weight.T + model.softmax.bias, rtol=1e-4, atol=1e-5)
    assert gates.weights_NK.shape == (14, 2)
    later = tokens.clone()
    later[:, 4:] = 0
    torch.testing.assert_close(model(later)[0][:, :4], logits[:, :4])


def test_dropout_and_noise_are_there_in_training_only() -> None:
    torch.manual_seed(0)
    model = MoELanguageModel(30, 8, 6, Layout(5, 2), dropout=0.5)
    tokens = torch.randint(30, (2, 7))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    noise = torch.Generator().manual_seed(0)
    assert not torch.equal(model(tokens, noise)[1].indices_NK, model(tokens, noise)[1].indices_NK)


def model_row(name: str, weights: tuple[float, float], figures: tuple[float, ...], counts: bool) -> dict[str, object]:
    """One trained model as result.json holds it."""
    keys = ("perplexity", "cv_importance", "cv_load", "max_over_mean_load")
    groups = 16 if name.endswith("-h") else None
    return {
        "name": name,
        "importance_weight": weights[0],
        "load_weight": weights[1],
        "ablation": name == "MoE-256",
        "counts": counts,
        "layout": {"experts": int(name.split("-")[1]), "groups": groups},
        **dict(zip(keys, figures, strict=True)),
    }


def paper() -> list[dict[str, object]]:
    """The paper's own figures in our form."""
    figures = ((39.8, 3.04, 3.01, 17.8), (35.6, 0.06, 0.17, 1.47), (35.7, 0.22, 0.04, 1.15), (35.6, 0.06, 0.05, 1.14))
    losses = [
        model_row("MoE-256", weights, row, weights == (0.1, 0.1))
        for weights, row in zip(PAPER_ORDER, figures, strict=True)
    ]
    others = (("MoE-4", 45.0), ("MoE-32", 39.7))
    flat = [model_row(name, (0.1, 0.1), (value, 0.1, 0.1, 1.1), True) for name, value in others]
    return [*flat, *losses, model_row("MoE-256-h", (0.1, 0.1), (36.0, 0.1, 0.1, 1.1), True)]


def verdicts(rows: list[dict[str, object]]) -> list[bool]:
    return [line.startswith("- Reproduced") for line in claims(rows)]


def test_the_papers_own_figures_bear_out_its_claims() -> None:
    assert verdicts(paper()) == [True] * 6


@pytest.mark.parametrize(
    ("index", "changed", "broken"),
    [
        (2, {"max_over_mean_load": 2.0}, 0),
        (2, {"perplexity": 35.7}, 1),
        (3, {"cv_importance": 0.3}, 2),
        (1, {"perplexity": 45.0}, 3),
        (1, {"perplexity": 35.5}, 4),
        (6, {"perplexity": 38.0}, 5),
    ],
)
def test_each_claim_falls_with_its_figure(index: int, changed: dict[str, float], broken: int) -> None:
    rows = paper()
    rows[index].update(changed)
    assert [number for number, holds in enumerate(verdicts(rows)) if not holds] == [broken]


@pytest.mark.slow
def test_the_experiment_writes_three_files_and_repeats_itself(tmp_path: Path) -> None:
    first = registry.run_experiment("shazeer", tmp_path / "a", seed=2, quick=True)
    again = registry.run_experiment("shazeer", tmp_path / "b", seed=2, quick=True)
    assert json.loads(json.dumps(first)) == json.loads((tmp_path / "a" / "result.json").read_text())
    assert [row["perplexity"] for row in first["models"]] == [row["perplexity"] for row in again["models"]]
    for name in ("picture.png", "result.json", "table.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = (tmp_path / "a" / "table.md").read_text()
    assert "prove nothing" in table
    assert "17.80" in table
