"""The decoder against formulas written out, and what its forward promises."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fathom.model import build
from fathom.model.attention import MLA
from fathom.spec import YarnScaling


def rotate_pairs(x: Tensor, position: int, frequencies: list[float]) -> Tensor:
    turned = x.clone()
    for pair, frequency in enumerate(frequencies):
        angle = position * frequency
        first, second = x[..., 2 * pair], x[..., 2 * pair + 1]
        turned[..., 2 * pair] = first * math.cos(angle) - second * math.sin(angle)
        turned[..., 2 * pair + 1] = first * math.sin(angle) + second * math.cos(angle)
    return turned


def test_latent_attention_follows_the_paper_head_by_head(latent_spec) -> None:  # type: ignore[no-untyped-def]
    """V2 eqs 9-19 in float64, one query and one head at a time."""
    spec = latent_spec(q_lora_rank=12)
    model = build(spec, dtype=torch.float64).eval()
    layer = model.layers[0].self_attn
    assert isinstance(layer, MLA)
    hidden = torch.randn(1, 9, 32, dtype=torch.float64)
    context = model._context(hidden, None, None, "auto")
    ours = layer(hidden, context, None)[0]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean() + 1e-6).sqrt() * weight

    scaling = spec.rope.scaling
    assert isinstance(scaling, YarnScaling)
    frequencies = model.rope._frequencies_Z.double().tolist()
    up = layer.kv_b_proj.weight.view(4, 14, 16)
    latents, rope_keys, outputs = [], [], []
    for position, h in enumerate(hidden[0]):
        compressed = layer.kv_a_proj_with_mqa.weight @ h
        latents.append(norm(compressed[:16], layer.kv_a_layernorm.weight))
        rope_keys.append(rotate_pairs(compressed[16:], position, frequencies))
        queries = layer.q_b_proj.weight @ norm(layer.q_a_proj.weight @ h, layer.q_a_layernorm.weight)
        heads = []
        for head, query in enumerate(queries.view(4, 12)):
            rotated = rotate_pairs(query[8:], position, frequencies)
            keys = [torch.cat((up[head, :8] @ c, r)) for c, r in zip(latents, rope_keys, strict=True)]
            scores = torch.stack([torch.cat((query[:8], rotated)) @ key for key in keys])
            m = 0.1 * 0.707 * math.log(4.0) + 1
            weights = torch.softmax(scores / math.sqrt(12) * m**2, dim=0)
            heads.append(sum(w * (up[head, 8:] @ c) for w, c in zip(weights, latents, strict=True)))
        outputs.append(layer.o_proj.weight @ torch.cat(heads))
    torch.testing.assert_close(ours, torch.stack(outputs), atol=1e-6, rtol=1e-6)


def test_activation_checkpointing_changes_no_gradient_and_counts_no_token_twice(latent_spec) -> None:  # type: ignore[no-untyped-def]
    tokens = torch.randint(0, 100, (2, 20))
    gradients, counts = [], []
    for recompute in (False, True):
        model = build(latent_spec(num_nextn_predict_layers=1))
        output = model(tokens, checkpoint_activations=recompute, mtp=True)
        (output.hidden_BTD.square().sum() + output.mtp_hidden[0].square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        counts.append([routing.indices_BTK for routing in output.routing])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert len(counts[1]) == 3
    for before, after in zip(*counts, strict=True):
        assert torch.equal(before, after)


def test_every_parameter_gets_a_gradient(latent_spec) -> None:  # type: ignore[no-untyped-def]
    model = build(latent_spec(q_lora_rank=12, num_nextn_predict_layers=2))
    output = model(torch.randint(0, 100, (2, 40)), mtp=True)
    loss = model.logits(output.hidden_BTD).logsumexp(-1).sum()
    (loss + sum(model.logits(h).square().sum() for h in output.mtp_hidden)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [h.shape[1] for h in output.mtp_hidden] == [39, 38]


def test_initialisation_is_seeded_and_has_the_published_spread(latent_spec) -> None:  # type: ignore[no-untyped-def]
    spec = latent_spec(initializer_range=0.006, vocab_size=2000)
    one, same, other = build(spec, seed=1), build(spec, seed=1), build(spec, seed=2)
    assert torch.equal(one.embed_tokens.weight, same.embed_tokens.weight)
    assert not torch.equal(one.embed_tokens.weight, other.embed_tokens.weight)
    assert abs(one.embed_tokens.weight.std().item() - 0.006) < 1e-4
    assert torch.equal(one.layers[0].input_layernorm.weight, torch.ones(32))
    assert not one.layers[1].mlp.gate.weight.eq(0).any()


def test_routers_stay_in_float32_and_the_residual_stream_in_bfloat16(latent_spec) -> None:  # type: ignore[no-untyped-def]
    model = build(latent_spec(), dtype=torch.bfloat16).eval()
    dtypes = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: dtypes.append(output[0].dtype))
    output = model(torch.randint(0, 100, (1, 8)))
    assert dtypes == [torch.bfloat16] * 3
    assert {routing.scores_BTE.dtype for routing in output.routing} == {torch.float32}
    assert {layer.mlp.gate.weight.dtype for layer in model.layers[1:]} == {torch.float32}
    same = build(latent_spec(), dtype=torch.float32)
    assert torch.equal(same.layers[1].mlp.gate.weight, model.layers[1].mlp.gate.weight)


def test_tied_embeddings_are_one_tensor(grouped_spec) -> None:  # type: ignore[no-untyped-def]
    model = build(grouped_spec(tie_word_embeddings=True))
    assert model.lm_head.weight_VD is model.embed_tokens.weight
    assert "lm_head.weight" not in model.state_dict()


def test_meta_device_holds_no_memory(latent_spec) -> None:  # type: ignore[no-untyped-def]
    assert {p.device.type for p in build(latent_spec(), device="meta").parameters()} == {"meta"}
