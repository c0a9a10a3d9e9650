from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fathom.data.corpus import read_documents
from fathom.data.shards import TokenShards, open_shards, write_shards
from fathom.errors import DataError, ShardError
from fathom.tokenizer import Tokenizer, train_bpe
from tests.recording_progress import RecordingProgress


def expected_tokens(corpus: Path, source: str, split: str, tokenizer: Tokenizer) -> list[int]:
    return [
        token
        for document in read_documents(corpus, source, split)  # type: ignore[arg-type]
        for token in (tokenizer.bos_id, *tokenizer.encode(document.text), tokenizer.eos_id)
    ]


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("source", ["ant", "bee", "cat"])
def test_shards_hold_every_document_between_its_ends(
    split: str, source: str, tiny_corpus: Path, tiny_shards: Path, tiny_tokenizer: Tokenizer
) -> None:
    expected = expected_tokens(tiny_corpus, source, split, tiny_tokenizer)
    shards = open_shards(tiny_shards, split, tiny_tokenizer)[source]  # type: ignore[arg-type]
    shards.verify()
    assert shards.read(0, len(shards)).tolist() == expected
    documents = list(read_documents(tiny_corpus, source, split))  # type: ignore[arg-type]
    text_bytes = sum(len(d.text.encode()) for d in documents)
    assert (shards.index.documents, shards.index.text_bytes) == (len(documents), text_bytes)
    assert shards.bytes_per_token == text_bytes / len(expected)
    assert all(shard.tokens <= 2500 for shard in shards.index.shards)
    assert len(shards.index.shards) == -(-len(expected) // 2500)


def test_reads_cross_files_and_stay_inside(train_shards: dict[str, TokenShards]) -> None:
    shards = train_shards["cat"]
    whole = shards.read(0, len(shards))
    assert whole.dtype == np.int64
    for start, stop in [(2490, 2510), (2500, 2500), (2499, 5001), (0, 1), (len(shards) - 1, len(shards))]:
        assert (shards.read(start, stop) == whole[start:stop]).all()
    for start, stop in [(-1, 5), (5, 4), (0, len(shards) + 1)]:
        with pytest.raises(IndexError):
            shards.read(start, stop)


def test_bytes_are_counted_where_a_document_begins(
    tiny_corpus: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_shards(tiny_corpus, tiny_tokenizer, tmp_path / "shards", shard_tokens=300)
    shards = open_shards(tmp_path / "shards", "held_out")["ant"]
    begin = 0
    sizes = iter([len(d.text.encode()) for d in read_documents(tiny_corpus, "ant", "held_out")])
    for shard in shards.index.shards:
        starts = int((shards.read(begin, begin + shard.tokens) == tiny_tokenizer.bos_id).sum())
        assert shard.documents == starts
        assert shard.text_bytes == sum(next(sizes) for _ in range(starts))
        begin += shard.tokens


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, tiny_corpus: Path, tiny_tokenizer: Tokenizer) -> None:
    tiny_tokenizer.save(tmp_path / "big")
    path = tmp_path / "big" / "tokenizer.json"
    parsed = json.loads(path.read_text(encoding="utf-8"))
    template = parsed["added_tokens"][0]
    parsed["added_tokens"] += [template | {"id": 65_600, "content": "<｜far｜>"}]
    parsed["model"]["vocab"] |= {f"<far {i}>": i for i in range(tiny_tokenizer.vocab_size, 65_600)}
    path.write_text(json.dumps(parsed), encoding="utf-8")
    big = Tokenizer.load(tmp_path / "big")
    index = write_shards(tiny_corpus, big, tmp_path / "shards")["held_out"]["ant"]
    assert index.dtype == "<u4"
    opened = open_shards(tmp_path / "shards", "held_out", big)["ant"]
    assert opened.read(0, len(opened)).tolist() == expected_tokens(tiny_corpus, "ant", "held_out", big)


@pytest.fixture
def copied(tiny_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shards, tmp_path / "copy"))


def test_a_shard_cut_short_or_missing_is_named_with_sizes_and_remedy(copied: Path) -> None:
    file = copied / "train" / "bee" / "00001.bin"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ShardError, match=rf"00001\.bin: {size} bytes expected, {size - 3} found; delete {copied} and"):
        open_shards(copied, "train")
    file.unlink()
    with pytest.raises(ShardError, match=rf"{size} bytes expected, 0 found"):
        open_shards(copied, "train")


def test_a_changed_byte_is_found_by_verify(copied: Path) -> None:
    file = copied / "train" / "bee" / "00000.bin"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    shards = TokenShards.open(copied / "train" / "bee")
    with pytest.raises(ShardError, match=r"00000\.bin: SHA-256 .* expected, .* found; delete"):
        shards.verify()


@pytest.mark.parametrize("content", ["", "{}", '{"shards": [{}]}', '{"shards": 3}'])
def test_an_unreadable_index_is_named(content: str, copied: Path) -> None:
    (copied / "train" / "bee" / "index.json").write_text(content)
    with pytest.raises(ShardError, match=r"bee/index\.json: no usable index"):
        open_shards(copied, "train")


def test_another_tokenizer_format_or_nothing_at_all_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="made by another tokenizer"):
        open_shards(copied, "train", train_bpe(["other text"] * 9, vocab_size=300))
    index = copied / "train" / "ant" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 99}))
    with pytest.raises(ShardError, match="of another format"):
        open_shards(copied, "train")
    with pytest.raises(ShardError, match="no token shards here"):
        open_shards(tmp_path / "absent", "train")


def test_a_failure_half_way_publishes_nothing(tiny_corpus: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))
    (corpus / "held_out" / "cat.jsonl").write_text("broken")
    with pytest.raises(DataError, match=r"cat\.jsonl"):
        write_shards(corpus, tiny_tokenizer, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_progress_ends_at_the_corpus_size(tiny_corpus: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    progress = RecordingProgress()
    write_shards(tiny_corpus, tiny_tokenizer, tmp_path / "shards", progress=progress)
    end = progress.updates[-1]
    assert (end.phase, end.unit) == ("shards", "bytes")
    assert end.done == end.total
