"""One training step (forward, backward, clip, AdamW) and its peak memory, against transformers with the same weights.

Speed comes from alternating rounds in one process; peak memory from a process of each alone, which also says how
much of it was there before the first step (interpreter, libraries and weights).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peers, timing
from fathom.train.loss import language_model_loss

LEARNING_RATE = 1e-4


def fathom_step(shape: str, tokens_BT: Tensor) -> Callable[[], None]:
    model = peers.fathom_model(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)

    def run() -> None:
        hidden_BTD = model(tokens_BT[:, :-1]).hidden_BTD
        loss, _ = model.apply_head(
            hidden_BTD, partial(language_model_loss, targets_BT=tokens_BT[:, 1:], chunk_tokens=1024)
        )
        del hidden_BTD
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def transformers_step(shape: str, tokens_BT: Tensor) -> Callable[[], None]:
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    model = peers.transformers_model(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)

    def run() -> None:
        loss = model(inputs_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


STEPS = {"fathom": fathom_step, "transformers": transformers_step}


def tokens(shape: str, batch: int, length: int) -> Tensor:
    vocab = peers.preset(f"bench-{shape}").vocab_size
    return torch.randint(0, vocab, (batch, length + 1), generator=torch.Generator().manual_seed(0))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def alone(name: str, shape: str, batch: int, length: int) -> None:
    """Run two steps of one contestant and print its memory; run in a process of its own."""
    step = STEPS[name](shape, tokens(shape, batch, length))
    before = peak_mib()
    step()
    step()
    print(json.dumps({"peak_mib": round(peak_mib()), "before_mib": round(before)}))


def memory(shape: str, batch: int, length: int) -> dict[str, object]:
    found = {}
    for name in STEPS:
        command = [sys.executable, "-m", "benchmarks.train_step", "--alone", name]
        command += ["--shape", shape, "--batch", str(batch), "--length", str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    ratio = found["fathom"]["peak_mib"] / found["transformers"]["peak_mib"]
    return {"memory": found, "peak_memory_times_peer": round(ratio, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="s", choices=["t", "s", "m", "l"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", choices=sorted(STEPS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    if a.alone:
        return alone(a.alone, a.shape, a.batch, a.length)
    found = memory(a.shape, a.batch, a.length)
    batch_BT = tokens(a.shape, a.batch, a.length)
    seconds = timing.interleave({name: make(a.shape, batch_BT) for name, make in STEPS.items()}, rounds=a.rounds)
    head = {"shape": a.shape, "batch": a.batch, "length": a.length}
    result = head | timing.summary(seconds, units=a.batch * a.length) | found
    return peers.write(f"train-{a.shape}-{a.batch}x{a.length}", result, a.out)


if __name__ == "__main__":
    main()
