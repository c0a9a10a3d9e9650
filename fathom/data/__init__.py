"""From sources on the network or on disk to training batches: fetch, extract, clean, deduplicate, pack."""

from __future__ import annotations

from fathom.data.corpus import CorpusSummary, SourceSummary, build_corpus, read_documents
from fathom.data.document import Document, Progress, silent
from fathom.data.fetch import DEFAULT_CACHE, fetch, fetch_all
from fathom.data.loader import LoadedBatch, NeedleMixture, PackedLoader, SourceProgress
from fathom.data.manifest import load_manifest
from fathom.data.needle import NeedleSample, make_needle
from fathom.data.shards import ShardIndex, TokenShards, open_shards, write_shards

__all__ = [
    "DEFAULT_CACHE",
    "CorpusSummary",
    "Document",
    "LoadedBatch",
    "NeedleMixture",
    "NeedleSample",
    "PackedLoader",
    "Progress",
    "ShardIndex",
    "SourceProgress",
    "SourceSummary",
    "TokenShards",
    "build_corpus",
    "fetch",
    "fetch_all",
    "load_manifest",
    "make_needle",
    "open_shards",
    "read_documents",
    "silent",
    "write_shards",
]
