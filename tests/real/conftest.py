"""SmolLM2-135M's real weights, and what transformers makes of the same file, computed once for all workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

import fathom
from fathom.cli.options import cache_directory
from fathom.errors import SourceError
from fathom.inference.catalog import catalog, fetch_named
from fathom.inference.language_model import LanguageModel

NEW_TOKENS = 16
CHATS = (
    ({"role": "user", "content": "What is the capital of France?"},),
    ({"role": "user", "content": "Count from 1 to 12, please."},),
    (
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ),
    (
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Apple."},
        {"role": "user", "content": "Write a Python function that says its name twice."},
    ),
)
TEXT = """\
The lighthouse at the end of the bay had been dark for eleven years when the council decided, by a single vote, to
light it again. Nobody remembered who kept the keys. Marta, who ran the bakery and had once repaired a church organ
with nothing but wire and patience, was asked to look at the lamp; she climbed the 214 steps on a windy Tuesday in
March and found a family of jackdaws living where the lens should have been.

"Well," she said to the eldest bird, "it's your house as much as ours. But there are boats out there."

She came back with bread, and on the third day the birds let her pass. The mechanism was older than she had thought:
brass gears cut by hand, a drum for the weight, and a small plate that gave the maker's name and the year 1887. Two
teeth were missing. She drew the wheel on paper, counted again, and wrote beneath it what had to be done.

    def teeth(turns, seconds, pinion=12):
        return pinion * seconds / turns

On the first clear night of April the light swept over the water once every 9.5 seconds, as the old charts said it
should, and an old fisherman stood on the pier with his hat in his hands and said nothing at all for a long time.
"""
TEXTS = (
    "In 1984 there were 12,345 people; the year2020end.",
    "It's what we'll do, I'd say: they don't, you're, I've, he's.",
    "天下大势，分久必合。 naïve café",
    "a  b   c\n\n\td \n \n  e\r\nf\u00a0g",
    "😀 ok <- [x] {y} #!/bin/sh --flag=1e-5",
)


@dataclass(frozen=True, slots=True)
class ReferenceOutputs:
    """What both read, and what transformers makes of it: token ids, logits of the text, and greedy answers."""

    logits_TV: Tensor
    ids: dict[str, Any]
    text: str = TEXT
    texts: tuple[str, ...] = TEXTS
    chats: tuple[tuple[dict[str, str], ...], ...] = CHATS
    new_tokens: int = NEW_TOKENS


@pytest.fixture(scope="session")
def file() -> Path:
    """Return the GGUF file, fetched by the catalog into the user's own cache."""
    try:
        return fetch_named(catalog()["smollm2-135m"], cache_directory())
    except SourceError as error:
        if "check the network" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def model(file: Path) -> LanguageModel:
    """Return the model as the library opens it by name."""
    return fathom.load("smollm2-135m", device="cpu", dtype="float32", weights="plain", cache_dir=cache_directory())


@pytest.fixture(scope="session")
def oracle(file: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> ReferenceOutputs:
    """Return transformers' results; the first worker computes them, for its reading takes most of the time."""
    base = tmp_path_factory.getbasetemp()
    home = base if worker_id == "master" else base.parent
    logits, ids = home / "smollm2.safetensors", home / "smollm2.json"
    with FileLock(home / "smollm2.lock"):
        if not ids.exists():
            found = _read_with_transformers(file)
            save_file({"logits": found.logits_TV}, logits)
            ids.write_text(json.dumps(found.ids))
    return ReferenceOutputs(load_file(logits)["logits"], json.loads(ids.read_text()))


def _read_with_transformers(file: Path) -> ReferenceOutputs:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    network = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    text = tokenizer(TEXT, add_special_tokens=False).input_ids
    with torch.inference_mode():
        logits_TV = network(torch.tensor([text])).logits[0]
    prompts, answers = [], []
    for chat in CHATS:
        prompt = tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)
        ids_1T = torch.tensor([prompt])
        drawn = network.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        prompts.append(prompt)
        answers.append(drawn[0, len(prompt) :].tolist())
    ids = {
        "text": text,
        "texts": [tokenizer(each, add_special_tokens=False).input_ids for each in TEXTS],
        "halves": tokenizer("x ½", add_special_tokens=False).input_ids,
        "plain": tokenizer("The capital of France is").input_ids,
        "prompts": prompts,
        "answers": answers,
    }
    return ReferenceOutputs(logits_TV, ids)
