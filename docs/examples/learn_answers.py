"""The answers to the exercises of docs/learn.md, computed."""

from __future__ import annotations

import torch

from fathom.families import preset
from fathom.model.attention.mla import costs
from fathom.model.moe.balance import expert_balance_loss
from fathom.model.moe.router import Router, Routing
from fathom.plan import cache_bytes_per_token, cache_numbers_per_token
from fathom.plan.cache import with_attention
from fathom.spec import MixtureOfExperts, RouterSpec

v3, lite, v2 = preset("deepseek-v3"), preset("deepseek-v2-lite"), preset("deepseek-v2")
print(f"1. {cache_bytes_per_token(v3):,.0f} bytes per token")

latent, full = cache_numbers_per_token(lite), cache_numbers_per_token(with_attention(lite, lite.attention.num_heads))
print(f"2. {latent:,} numbers of {full:,}: {latent / full:.0%}")

for queries in (1, 4096):
    expanded, absorbed = costs(v2.attention, queries, 4096)
    cheaper = "absorbed" if absorbed < expanded else "expanded"
    print(f"3. {queries} queries: expanded {expanded / 1e6:,.0f}, absorbed {absorbed / 1e6:,.0f} million: {cheaper}")

E, K, T = 16, 4, 64
logits_BTE = torch.zeros(1, T, E, requires_grad=True)
scores_BTE = logits_BTE.softmax(-1)
same_BTK = torch.arange(K).expand(1, T, K)
loss = expert_balance_loss(Routing(scores_BTE, same_BTK, scores_BTE[..., :K]))
loss.backward()
gradient_E = logits_BTE.grad.sum((0, 1))
chosen, other = -gradient_E[0], -gradient_E[-1]
print(f"4. loss {loss:.1f}; descent moves logits of the {K} chosen by {chosen:+.3f}, of the others by {other:+.3f}")

torch.manual_seed(0)
moe = MixtureOfExperts(
    n_routed_experts=E,
    num_experts_per_tok=K,
    moe_intermediate_size=8,
    router=RouterSpec(score="sigmoid", selection_bias=True, normalize=True),
)
router, x_BTD = Router(32, moe).requires_grad_(False), torch.randn(1, T, 32)
before = router(x_BTD)
router.e_score_correction_bias += 0.5
after = router(x_BTD)
print(f"5. same experts: {before.indices_BTK.equal(after.indices_BTK)}, same weights: ", end="")
print(before.weights_BTK.equal(after.weights_BTK))
