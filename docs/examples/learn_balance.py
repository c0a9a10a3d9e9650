"""Train one small mixture of experts without balance, with V2's loss and with V3's bias; print and keep the loads.

`python docs/examples/learn_balance.py --keep` writes docs/learn/loads.json, which learn_pictures.py draws.
The text is drawn from eight tables of which byte follows which, one table a sequence: an expert may learn a table.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.families import preset
from fathom.model import build
from fathom.model.moe.balance import balance_loss, expert_counts, max_load, updated_bias
from fathom.spec import BalanceSpec, GroupedQueryAttention, MixtureOfExperts, RouterSpec

E, K, VOCABULARY, STEPS = 16, 2, 32, 150
ROUTERS = {
    "nothing": RouterSpec(),
    "balance loss (V2)": RouterSpec(balance=BalanceSpec(expert_loss=0.01)),
    "selection bias (V3)": RouterSpec(
        score="sigmoid", selection_bias=True, normalize=True, balance=BalanceSpec(bias_update_rate=0.01)
    ),
}


def texts(generator: torch.Generator, sequences: int, length: int) -> Tensor:
    """Return (B, T) tokens, each sequence from one of eight tables."""
    tables = torch.randn(8, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(7)).mul(2).softmax(-1)
    table_B = torch.randint(8, (sequences,), generator=generator)
    tokens = [torch.randint(VOCABULARY, (sequences,), generator=generator)]
    while len(tokens) < length:
        tokens.append(torch.multinomial(tables[table_B, tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, dim=1)


def train(router: RouterSpec, steps: int = STEPS) -> tuple[Tensor, float]:
    """Return the experts' shares of each step's tokens, (steps, E), and the mean loss of the last 20 steps."""
    spec = replace(
        preset("bench-t"),
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=1,
        first_k_dense_replace=0,
        attention=GroupedQueryAttention(num_heads=4, num_kv_heads=1, head_dim=16),
        moe=MixtureOfExperts(
            n_routed_experts=E, num_experts_per_tok=K, moe_intermediate_size=32, n_shared_experts=1, router=router
        ),
        initializer_range=0.1,
    )
    model, generator = build(spec), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    gate, shares, losses = model.layers[0].mlp.gate, [], []
    for _ in range(steps):
        tokens_BT = texts(generator, 8, 33)
        out = model(tokens_BT[:, :-1])
        (routing,) = out.routing
        loss = F.cross_entropy(model.logits(out.hidden_BTD).flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + balance_loss(routing, spec.moe)).backward()
        optimizer.step()
        counts_E = expert_counts(routing, E)
        if gate.e_score_correction_bias is not None:
            rate = router.balance.bias_update_rate
            gate.e_score_correction_bias = updated_bias(gate.e_score_correction_bias, counts_E, rate)
        shares.append(counts_E / counts_E.sum())
        losses.append(loss.item())
    return torch.stack(shares), sum(losses[-20:]) / 20


def main() -> None:
    torch.set_num_threads(1)  # products this small gain nothing from more
    kept = {}
    print(f"{'balanced by':<21} {'busiest expert':<16} {'experts below half of their share':<35} loss")
    for name, router in ROUTERS.items():
        shares, loss = train(router)
        last_E = shares[-20:].mean(0)
        idle = int((last_E < 0.5 / E).sum())
        print(f"{name:<21} {max_load(last_E):.2f} x the mean    {idle} of {E:<29} {loss:.2f}")
        kept[name] = [[round(share, 4) for share in row.tolist()] for row in shares]
    if "--keep" in sys.argv:
        path = Path(__file__).parents[1] / "learn" / "loads.json"
        path.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
