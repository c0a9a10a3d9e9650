"""What one GPU makes of Fathom: training, decoding, grouped products, wide layers, transformers beside; one JSON.

Every figure is measured here, also what others are given as a share of: a copy for bandwidth, one large bfloat16
product for arithmetic. ``--smoke`` runs tiny shapes on whatever there is, to show that everything runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import peers
from fathom.families import PRESETS
from fathom.model import Decoder
from fathom.model.build import build
from fathom.plan.count import count_parameters
from fathom.plan.flops import forward_flops_per_token, training_flops_per_token
from fathom.spec import LatentAttention, ModelSpec
from fathom.spec.hf import spec_to_hf
from fathom.train.loss import language_model_loss

HALF = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: of a GPU, or small enough for any machine."""

    copy_bytes: int
    product: int
    trained: ModelSpec
    batch: int
    length: int
    latents: tuple[tuple[int, int], ...]
    """Sequences and cached tokens of each."""
    experts: tuple[int, int, int, int]
    """Experts, tokens, hidden size, width."""
    attention: tuple[int, int]
    """Sequences, tokens of each."""
    wide: tuple[ModelSpec, ...]
    rounds: int


def mixture() -> ModelSpec:
    """A V3-like mixture of 1 to 2 billion parameters: V2-Lite's shapes, with fewer and narrower layers."""
    spec = PRESETS["deepseek-v2-lite"].spec
    assert spec.moe is not None
    moe = replace(spec.moe, n_routed_experts=64, moe_intermediate_size=512)
    return replace(spec, hidden_size=1536, intermediate_size=6144, num_hidden_layers=10, moe=moe, name="moe-1b")


def gpu_sizes() -> Sizes:
    v2, dense = PRESETS["deepseek-v2"].spec, PRESETS["deepseek-llm-67b"].spec
    layers = (replace(v2, num_hidden_layers=2), replace(dense, num_hidden_layers=1))
    return Sizes(
        copy_bytes=2**32,
        product=8192,
        trained=mixture(),
        batch=4,
        length=2048,
        latents=((1, 32_768), (16, 8192), (64, 4096), (128, 4096)),
        experts=(64, 8192, 2048, 1408),
        attention=(4, 4096),
        wide=tuple(replace(spec, vocab_size=4096) for spec in layers),
        rounds=10,
    )


def smoke_sizes() -> Sizes:
    tiny = PRESETS["bench-t"].spec
    dense = replace(PRESETS["tiny-dense"].spec, num_hidden_layers=1)
    return Sizes(
        2**16, 32, replace(tiny, num_hidden_layers=2), 1, 16, ((2, 32),), (4, 16, 32, 16), (1, 16), (dense,), 1
    )


class Meter:
    """Times what runs on a device, and keeps to a budget of seconds."""

    def __init__(self, device: torch.device, rounds: int, seconds: float) -> None:
        self.device, self.rounds, self.end = device, rounds, time.monotonic() + seconds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the median of several calls, each waited for, after one that warms up."""
        found = []
        for turn in range(self.rounds + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            if turn:
                found.append(time.perf_counter() - start)
        return statistics.median(found)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


def numbers(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=HALF)


def limits(meter: Meter, sizes: Sizes) -> dict[str, float]:
    """Bandwidth of a copy (bytes read and written) and arithmetic of one dense product."""
    source = torch.empty(sizes.copy_bytes // 2, dtype=HALF, device=meter.device)
    target, side = torch.empty_like(source), sizes.product
    copied = 2 * source.nbytes / meter.seconds(lambda: target.copy_(source))
    a, b = numbers(meter.device, side, side), numbers(meter.device, side, side)
    return {"copy_bytes_per_second": copied, "product_flops": 2 * side**3 / meter.seconds(lambda: a @ b)}


def training(meter: Meter, sizes: Sizes, model: torch.nn.Module, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """One step: forward and backward under autocast, AdamW; tokens a second."""
    spec, device = sizes.trained, meter.device
    tokens_BT1 = torch.randint(spec.vocab_size, (sizes.batch, sizes.length + 1), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, dtype=HALF):
            value = loss(tokens_BT1)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds, tokens = meter.seconds(step), sizes.batch * sizes.length
    return {
        "tokens_per_second": tokens / seconds,
        "flops": tokens * training_flops_per_token(spec, sizes.length) / seconds,
        "peak_bytes": meter.peak_bytes(),
    }


def own_loss(model: Decoder, tokens_BT1: Tensor) -> Tensor:
    hidden_BTD = model(tokens_BT1[:, :-1]).hidden_BTD
    targets_BT = tokens_BT1[:, 1:]
    mean, _ = model.apply_head(hidden_BTD, partial(language_model_loss, targets_BT=targets_BT, chunk_tokens=4096))
    return mean


def fathom_training(meter: Meter, sizes: Sizes) -> dict[str, float]:
    model = build(sizes.trained, device=meter.device, seed=0).train()
    return training(meter, sizes, model, partial(own_loss, model))


def transformers_training(meter: Meter, sizes: Sizes) -> dict[str, float]:
    """The same shapes by transformers, its weights drawn anew."""
    from transformers import AutoConfig, AutoModelForCausalLM

    written = spec_to_hf(sizes.trained)
    config = AutoConfig.for_model(written.pop("model_type"), **written)
    with meter.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()

    def loss(tokens_BT1: Tensor) -> Tensor:
        found: Tensor = model(tokens_BT1, labels=tokens_BT1, use_cache=False).loss
        return found

    return training(meter, sizes, model, loss)


def latent_decoding(meter: Meter, sizes: Sizes) -> list[dict[str, float]]:
    """V2's absorbed attention of one new token a sequence: bytes of latents read in a second."""
    from fathom.kernels import attention

    spec = PRESETS["deepseek-v2"].spec.attention
    assert isinstance(spec, LatentAttention)
    width, rows = spec.kv_lora_rank + spec.qk_rope_head_dim, []
    for batch, context in sizes.latents:
        q, latents = (
            numbers(meter.device, batch, 1, spec.num_heads, width),
            numbers(meter.device, batch, 1, context, width),
        )
        run = partial(attention, q, latents, latents, mask_B1TS=None, causal=False, scale=0.1)
        with torch.inference_mode():
            seconds = meter.seconds(run)
        rows.append({"sequences": batch, "context": context, "bytes_per_second": latents.nbytes / seconds})
    return rows


def grouped_products(meter: Meter, sizes: Sizes) -> dict[str, float]:
    """As many rows through experts of uneven load as through one dense matrix: operations a second of both."""
    experts, tokens, hidden, width = sizes.experts
    rows, dense = numbers(meter.device, tokens, hidden), numbers(meter.device, hidden, width)
    stack = numbers(meter.device, experts, width, hidden)
    shares = torch.rand(experts, generator=torch.Generator().manual_seed(0)) + 0.5
    ends = (shares.cumsum(0) / shares.sum() * tokens).round().to(torch.int32).to(meter.device)
    work = 2 * tokens * hidden * width
    return {
        "grouped_flops": work / meter.seconds(lambda: F.grouped_mm(rows, stack.mT, offs=ends)),
        "dense_flops": work / meter.seconds(lambda: rows @ dense),
    }


def attention_forms(meter: Meter, sizes: Sizes) -> dict[str, object]:
    """V2's heads, keys of 192 and values of 128, forward and backward: ours (padded), and each kernel as it is."""
    from fathom.kernels import attention

    batch, tokens = sizes.attention
    q, k = (numbers(meter.device, batch, 16, tokens, 192).requires_grad_() for _ in range(2))
    v = numbers(meter.device, batch, 16, tokens, 128).requires_grad_()

    def ours() -> None:
        attention(q, k, v, mask_B1TS=None, causal=True, scale=0.07).sum().backward()  # type: ignore[no-untyped-call]

    def theirs() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.07).sum().backward()  # type: ignore[no-untyped-call]

    found: dict[str, object] = {"fathom_seconds": meter.seconds(ours)}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        try:
            with sdpa_kernel(backend):
                found[f"{backend.name.lower()}_seconds"] = meter.seconds(theirs)
        except RuntimeError as error:
            found[f"{backend.name.lower()}_refused"] = str(error).splitlines()[0][:200]
    return found


def wide_layers(meter: Meter, sizes: Sizes) -> list[dict[str, object]]:
    """Layers at full width in bfloat16, forward and backward, at the largest number of rows that fits."""
    rows = []
    for spec in sizes.wide:
        model = build(spec, device=meter.device, seed=0, dtype=HALF).train()
        found: dict[str, object] = {"model": spec.name, "layers": spec.num_hidden_layers}
        batch = 1
        while time.monotonic() < meter.end and batch <= 2 ** (1 if meter.device.type == "cpu" else 8):
            try:
                tokens_BT = torch.randint(spec.vocab_size, (batch, sizes.length), device=meter.device)

                def run(tokens_BT: Tensor = tokens_BT, model: Decoder = model) -> None:
                    model(tokens_BT).hidden_BTD.sum().backward()
                    model.zero_grad(set_to_none=True)

                seconds = meter.seconds(run)
            except torch.OutOfMemoryError:
                break
            # without the output head, which does not run
            work = forward_flops_per_token(spec, sizes.length) - 2.0 * spec.vocab_size * spec.hidden_size
            tokens = batch * sizes.length
            found |= {"batch": batch, "tokens_per_second": tokens / seconds, "flops": 3 * tokens * work / seconds}
            batch *= 2
        rows.append(found)
        del model
        release(meter.device)
    return rows


def release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


SECTIONS: dict[str, Callable[[Meter, Sizes], object]] = {
    "limits": limits,
    "latent_decoding": latent_decoding,
    "grouped_products": grouped_products,
    "attention_192_128": attention_forms,
    "training": fathom_training,
    "training_transformers": transformers_training,
    "wide_layers": wide_layers,
}


def measure(device: torch.device, sizes: Sizes, seconds: float) -> dict[str, object]:
    """Run every section that the budget leaves time for; one that fails says why, and the others run."""
    meter, result = Meter(device, sizes.rounds, seconds), dict[str, object]()
    for name, section in SECTIONS.items():
        if time.monotonic() > meter.end:
            result[name] = {"left_out": f"the {seconds:g} s were over"}
            continue
        print(f"== {name}", flush=True)
        try:
            result[name] = section(meter, sizes)
        except Exception as error:
            result[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        release(device)
    return result | shares(result)


def shares(result: dict[str, object]) -> dict[str, object]:
    """Return the figures as shares of the measured copy and product."""
    found, most = dict[str, object](), result["limits"]
    if not isinstance(most, dict) or "product_flops" not in most:
        return {"shares": found}
    for name in ("training", "training_transformers", "grouped_products", "wide_layers", "latent_decoding"):
        each = result.get(name)
        for index, row in enumerate(each if isinstance(each, list) else [each]):
            for field, value in (row or {}).items():
                limit = {"bytes_per_second": "copy_bytes_per_second"}.get(field, "product_flops")
                if field == "bytes_per_second" or field.endswith("flops"):
                    found[f"{name}[{index}].{field}"] = round(value / most[limit], 4)
    return {"shares": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU where there is no GPU")
    parser.add_argument("--seconds", type=float, default=360.0, help="begin no section after so many")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    a = parser.parse_args()
    if not torch.cuda.is_available() and not a.smoke:
        parser.error("no CUDA device is here; --smoke runs tiny shapes on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    sizes = smoke_sizes() if a.smoke else gpu_sizes()
    head = {"benchmark": "gpu", "device": name, "smoke": a.smoke, "machine": peers.machine()}
    head["trained_parameters"] = count_parameters(sizes.trained).total
    torch.manual_seed(0)
    result = head | measure(device, sizes, a.seconds)
    a.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (a.out / f"gpu{'-smoke' if a.smoke else ''}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
