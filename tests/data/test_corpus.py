from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fathom.data.corpus import CorpusSummary, build_corpus, read_documents
from fathom.data.dedupe import content_key
from fathom.data.manifest import load_manifest
from fathom.errors import DataError, SpecError
from fathom.spec.data import Deduplication, ExerciseSource, FolderSource, PackageSource
from fathom.spec.recipe import CorpusStep
from tests.recording_progress import RecordingProgress, Update

SOURCES = Path(__file__).parents[2] / "recipes" / "sources"
STEP = CorpusStep(manifest="-", held_out_fraction=0.2, min_chars=10)


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh ", k=200)).strip() for _ in range(count)]


def folder(root: Path, name: str, documents: list[str], **fields: object) -> FolderSource:
    root.mkdir(exist_ok=True)
    rows = "\n".join(json.dumps({"text": text}) for text in documents)
    (root / f"{name}.jsonl").write_text(rows)
    return FolderSource(name=name, path=str(root / f"{name}.jsonl"), **fields)  # type: ignore[arg-type]


def build(sources: list[FolderSource], out: Path, step: CorpusStep = STEP) -> CorpusSummary:
    return build_corpus(step, sources, out)


def read_all(out: Path, name: str) -> dict[str, list[str]]:
    return {split: [d.text for d in read_documents(out, name, split)] for split in ("train", "held_out")}


def test_every_document_is_counted_once_as_kept_or_dropped(tmp_path: Path) -> None:
    good = texts(100)
    documents = [*good, good[3], good[4].upper() + " ", good[5][:100] + "#" + good[5][101:], "tiny", "\ufffd" * 50]
    summary = build([folder(tmp_path / "in", "mine", documents)], tmp_path / "out")
    mine = summary.sources["mine"]
    assert (mine.extracted, mine.short, mine.broken, mine.exact_duplicates, mine.near_duplicates) == (105, 1, 1, 2, 1)
    written = read_all(tmp_path / "out", "mine")
    assert sorted(written["train"] + written["held_out"]) == sorted(good)
    assert mine.documents == {split: len(found) for split, found in written.items()}
    assert mine.bytes == {split: sum(len(t.encode()) for t in found) for split, found in written.items()}
    assert 8 <= mine.documents["held_out"] <= 35
    assert CorpusSummary.load(tmp_path / "out") == summary
    assert (summary.documents, summary.bytes) == (100, sum(len(text) for text in good))


def test_splits_depend_on_the_text_alone_and_never_share_any(tmp_path: Path) -> None:
    good = texts(120)
    build([folder(tmp_path / "a", "mine", good)], tmp_path / "one")
    build([folder(tmp_path / "b", "mine", list(reversed(good[20:])))], tmp_path / "two")
    one, two = read_all(tmp_path / "one", "mine"), read_all(tmp_path / "two", "mine")
    assert set(two["held_out"]) == set(one["held_out"]) & set(good[20:])
    assert not {content_key(t) for t in one["train"]} & {content_key(t) for t in one["held_out"]}


def test_a_text_of_two_sources_stays_with_the_first(tmp_path: Path) -> None:
    good = texts(60)
    near = [text[:100] + "#" + text[101:] for text in good[:10]]
    sources = [
        folder(tmp_path / "in", "first", good[:30]),
        folder(tmp_path / "in", "second", near + good[:10] + good[30:]),
    ]
    second = build(sources, tmp_path / "out").sources["second"]
    assert (second.exact_duplicates, second.near_duplicates, sum(second.documents.values())) == (10, 10, 30)


def test_a_cap_keeps_an_even_choice_in_order(tmp_path: Path) -> None:
    good = texts(400)
    summary = build([folder(tmp_path / "in", "mine", good, max_bytes=20_000)], tmp_path / "out")
    mine = summary.sources["mine"]
    assert 19_000 < summary.bytes <= 20_000
    assert mine.over_cap == 400 - summary.documents
    train = read_all(tmp_path / "out", "mine")["train"]
    places = [good.index(text) for text in train]
    assert places == sorted(places)
    assert mine.documents["held_out"] / summary.documents < 0.4  # the cap must not favour held-out documents
    assert all(any(start <= place < start + 100 for place in places) for start in range(0, 400, 100))


def test_without_a_threshold_only_exact_repetitions_go(tmp_path: Path) -> None:
    good = texts(30)
    step = CorpusStep(manifest="-", held_out_fraction=0.2, deduplication=Deduplication(threshold=1.0))
    summary = build([folder(tmp_path / "in", "mine", [*good, good[0] + "#"])], tmp_path / "out", step)
    assert summary.documents == 31


@pytest.mark.parametrize("count", [1, 2])
def test_a_few_documents_are_cut_to_give_both_splits_and_a_short_one_is_refused(tmp_path: Path, count: int) -> None:
    mine = build([folder(tmp_path / "in", "mine", texts(count))], tmp_path / "out").sources["mine"]
    assert mine.cut >= 1
    assert 0 < mine.bytes["held_out"] < mine.bytes["train"]
    with pytest.raises(DataError, match=r"'one': no document for .* after cleaning \(1 extracted"):
        build([folder(tmp_path / "in", "one", ["a" * 30])], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_progress_skipped_files_and_an_occupied_folder_are_told(tmp_path: Path) -> None:
    source_folder = tmp_path / "in"
    folder(source_folder, "rows", texts(40))
    (source_folder / "bad.txt").write_bytes(b"\xff")
    source = FolderSource(name="mine", path=str(source_folder))
    progress = RecordingProgress()
    summary = build_corpus(STEP, [source], tmp_path / "out", progress=progress)
    assert progress.updates[-1] == Update(40, 40, "documents", "corpus: mine")
    assert "bad.txt: not UTF-8" in summary.sources["mine"].left_out.reasons["files not in UTF-8"].examples[0]
    assert CorpusSummary.load(tmp_path / "out") == summary
    with pytest.raises(DataError, match="exists and is not empty; delete it"):
        build([source], tmp_path / "out")


def test_packages_and_folders_make_one_corpus(make_package, tmp_path: Path) -> None:
    source, settings = make_package({f"{i}.txt": text for i, text in enumerate(texts(30))})
    mine = folder(tmp_path / "in", "mine", texts(30, seed=9))
    summary = build_corpus(STEP, [source, mine], tmp_path / "out", tmp_path / "cache", settings=settings)
    assert [sum(s.documents.values()) for s in summary.sources.values()] == [30, 30]


def test_a_damaged_corpus_is_named(tmp_path: Path) -> None:
    build([folder(tmp_path / "in", "mine", texts(9))], tmp_path / "out")
    (tmp_path / "out" / "train" / "mine.jsonl").write_text('{"id": ')
    with pytest.raises(DataError, match=r"mine\.jsonl: cannot be read"):
        list(read_documents(tmp_path / "out", "mine", "train"))
    (tmp_path / "out" / "summary.json").write_text("{}")
    with pytest.raises(DataError, match=r"summary\.json: no usable summary"):
        CorpusSummary.load(tmp_path / "out")


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.toml")), ids=lambda path: path.stem)
def test_our_manifests_load(path: Path) -> None:
    sources = load_manifest(path).sources
    assert sources
    assert all(isinstance(source, PackageSource | ExerciseSource) for source in sources)


@pytest.mark.parametrize("name", ["quickstart", "large"])
def test_our_corpora_hold_both_languages_and_code(name: str) -> None:
    sources = load_manifest(SOURCES / f"{name}.toml").sources
    assert {"en", "zh", "code"} <= {source.language for source in sources}
    assert len(sources) >= 5


def test_a_manifest_finds_folders_beside_it_and_names_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[sources]]\nkind = "folder"\nname = "mine"\npath = "text"\n')
    source = load_manifest(path).sources[0]
    assert isinstance(source, FolderSource)
    assert source.path == str(tmp_path / "text")
    path.write_text(path.read_text() + 'colour = "red"\n')
    with pytest.raises(SpecError, match=r"mine\.toml: sources\[0\]\.colour: unknown field"):
        load_manifest(path)
    package = (SOURCES / "quickstart.toml").read_text().replace('extractor = "plain"', 'extractor = "plane"')
    path.write_text(package)
    with pytest.raises(SpecError, match=r"sources\[1\]\.extractor: unknown extractor 'plane'; use one of"):
        load_manifest(path)
    with pytest.raises(SpecError, match="no such file"):
        load_manifest(tmp_path / "absent.toml")
