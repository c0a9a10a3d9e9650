"""DeepSeekMoE's router by hand: score, select, weigh, balance, each compared with ours; then V3's variations.

B batch, T tokens, D hidden size, E routed experts, K experts per token, N = B T, X groups of experts, Y experts in one.
"""

from __future__ import annotations

from math import comb

import torch
from learn_shapes import show
from torch.testing import assert_close

from fathom.model.moe import MoELayer
from fathom.model.moe.balance import expert_balance_loss, expert_counts, updated_bias
from fathom.spec import BalanceSpec, GroupLimited, MixtureOfExperts, RouterSpec

torch.manual_seed(0)
E, K, F = 16, 4, 32


def layer(router: RouterSpec) -> MoELayer:
    moe = MixtureOfExperts(
        n_routed_experts=E, num_experts_per_tok=K, moe_intermediate_size=F, n_shared_experts=1, router=router
    )
    return MoELayer(64, moe).requires_grad_(False)


print("1. fine-grained: the same parameters cut finer can be combined in more ways")
print(f"2 of 16 experts: {comb(16, 2):,} combinations; each cut into four, 8 of 64: {comb(64, 8):,}")

print("\n2. score, select, weigh")
ours, x_BTD = layer(RouterSpec()), torch.randn(2, 8, 64)
logits_BTE = x_BTD @ ours.gate.weight.T
scores_BTE = logits_BTE.softmax(-1)
weights_BTK, experts_BTK = scores_BTE.topk(K, dim=-1)
show("x_BTD", x_BTD)
show("logits_BTE", logits_BTE, "x gate^T, in float32: a row of gate for each expert")
show("scores_BTE", scores_BTE, "softmax over the experts")
show("experts_BTK", experts_BTK, "the K best")
show("weights_BTK", weights_BTK, "their scores, not made to add up to 1 (V2)")
y_BTD, routing = ours(x_BTD)
assert_close(routing.indices_BTK, experts_BTK)
assert_close(routing.weights_BTK, weights_BTK)

print("\n3. run the experts, one token after another")
by_hand_BTD = ours.shared_experts(x_BTD)
for b in range(2):
    for t in range(8):
        for k in range(K):
            e = experts_BTK[b, t, k]
            gate_F, up_F = ours.experts.gate_up_proj[e] @ x_BTD[b, t]
            hidden_F = torch.nn.functional.silu(gate_F) * up_F
            by_hand_BTD[b, t] += weights_BTK[b, t, k] * (ours.experts.down_proj[e] @ hidden_F)
show("hidden_F", hidden_F, "silu(gate x) * (up x) of one expert")
show("y_BTD", y_BTD, "the shared expert, weight 1, plus K weighted experts")
assert_close(y_BTD, by_hand_BTD, rtol=1e-4, atol=1e-4)
print("equal to fathom.model.moe.MoELayer, to 1e-4")

print("\n4. balance: V2's expert-level loss, one sequence at a time")
chosen_BE = torch.stack([row.flatten().bincount(minlength=E) for row in experts_BTK])
frequency_BE = chosen_BE * E / (K * 8)  # 1 where an expert is chosen as often as the others
mean_score_BE = scores_BTE.mean(1)
loss = (frequency_BE * mean_score_BE).sum(-1).mean()
show("frequency_BE", frequency_BE, "E / (K T) times the tokens that chose the expert: no gradient")
show("mean_score_BE", mean_score_BE, "its mean score: the gradient flows here")
assert_close(loss, expert_balance_loss(routing))
print(f"sum of their products: {loss:.3f}; 1 if all were even, {E / K:.0f} if the same {K} experts took every token")

print("\n5. V2's groups: a token's experts lie in few devices")
limited = layer(RouterSpec(select=GroupLimited(n_group=4, topk_group=2)))
scores_BTE = (x_BTD @ limited.gate.weight.T).softmax(-1)
scores_BTXY = scores_BTE.view(2, 8, 4, 4)
best_BTX = scores_BTXY.amax(-1)
allowed_BTX = torch.zeros(2, 8, 4, dtype=torch.bool).scatter(-1, best_BTX.topk(2).indices, True)
allowed_BTE = allowed_BTX.repeat_interleave(4, dim=-1)
experts_BTK = scores_BTE.masked_fill(~allowed_BTE, float("-inf")).topk(K).indices
show("best_BTX", best_BTX, "each group's best expert")
show("allowed_BTE", allowed_BTE, "the experts of the two best groups")
assert_close(limited(x_BTD)[1].indices_BTK, experts_BTK)

print("\n6. V3: sigmoid scores, a bias that moves the selection alone, weights that add up to the scale")
bias_router = RouterSpec(
    score="sigmoid", selection_bias=True, normalize=True, scale=2.5, balance=BalanceSpec(bias_update_rate=0.001)
)
v3 = layer(bias_router)
v3.gate.e_score_correction_bias[0] = 1.0
scores_BTE = (x_BTD @ v3.gate.weight.T).sigmoid()
experts_BTK = (scores_BTE + v3.gate.e_score_correction_bias).topk(K).indices
weights_BTK = scores_BTE.gather(-1, experts_BTK)
weights_BTK = 2.5 * weights_BTK / weights_BTK.sum(-1, keepdim=True)
_, routing = v3(x_BTD)
assert_close(routing.indices_BTK, experts_BTK)
assert_close(routing.weights_BTK, weights_BTK)
counts_E = expert_counts(routing, E)
bias_E = v3.gate.e_score_correction_bias + 0.001 * (counts_E.float().mean() - counts_E).sign()
assert_close(updated_bias(v3.gate.e_score_correction_bias, counts_E, 0.001), bias_E)
show("weights_BTK", weights_BTK, "scores without the bias, divided by their sum, times 2.5")
show("bias_E", bias_E, "after the step: down by 0.001 where the load was above the mean, else up")
print(f"expert 0, whose bias was 1, got {counts_E[0]} of {2 * 8} tokens; its bias is now {bias_E[0]:.3f}")
