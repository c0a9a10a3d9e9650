"""Pairs of one random model in transformers and the same in Fathom, exchanged through a published directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from fathom.checkpoint.hf import load_hf
from fathom.model import Decoder, build
from fathom.spec import LatentAttention, ModelSpec

YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
}
"""At 16 rotated columns: two frequencies kept, one blended, the rest divided. The text outgrows the 32."""

DENSE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LATENT = DENSE | {
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 16,
    "v_head_dim": 10,
    "q_lora_rank": None,
    "moe_intermediate_size": 20,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
V2 = LATENT | {"topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0}
V3 = LATENT | {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0, "q_lora_rank": 20}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LIMITED = {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0, "q_lora_rank": 20}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama mha": ("llama", DENSE | {"num_key_value_heads": 4}),
    "llama gqa with biases": ("llama", DENSE | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama mqa tied": ("llama", DENSE | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama linear rope": (
        "llama",
        DENSE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    ),
    "llama llama3 rope": ("llama", DENSE | {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", DENSE),
    "qwen2 tied": ("qwen2", DENSE | {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "mistral": ("mistral", DENSE | {"sliding_window": 9}),
    "mistral without window": ("mistral", DENSE | {"sliding_window": None, "head_dim": 8}),
    "mixtral": (
        "mixtral",
        DENSE | {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": None, "intermediate_size": 28},
    ),
    "mixtral with window": (
        "mixtral",
        DENSE | {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 13, "intermediate_size": 20},
    ),
    "deepseek_v2 greedy": ("deepseek_v2", V2),
    "deepseek_v2 lite": ("deepseek_v2", V2 | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}),
    "deepseek_v2 group limited": (
        "deepseek_v2",
        V2 | LIMITED | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek_v2 differing mscale": (
        "deepseek_v2",
        V2 | LIMITED | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}, "first_k_dense_replace": 2},
    ),
    "deepseek_v2 yarn without mscale": ("deepseek_v2", V2 | {"rope_parameters": YARN}),
    "deepseek_v2 with biases": ("deepseek_v2", V2 | {"attention_bias": True, "q_lora_rank": 20}),
    "deepseek_v3 yarn": ("deepseek_v3", V3 | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    "deepseek_v3 half layout": ("deepseek_v3", V3 | {"rope_interleave": False, "q_lora_rank": None}),
    "deepseek_v3 one group": (
        "deepseek_v3",
        V3 | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
}
LATENT_CASES = [name for name in CASES if name.startswith("deepseek")]


@dataclass(frozen=True)
class Pair:
    """The same weights twice, and a text longer than any original context and window here."""

    name: str
    theirs: Any
    ours: Decoder
    spec: ModelSpec
    directory: Path
    tokens_BT: Tensor

    @property
    def latent(self) -> bool:
        return isinstance(self.spec.attention, LatentAttention)

    def our_logits(self, tokens_BT: Tensor) -> Tensor:
        with torch.no_grad():
            return self.ours.logits(self.ours(tokens_BT).hidden_BTD)

    def their_logits(self, tokens_BT: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.theirs(tokens_BT).logits
            return logits


def config_of(model_type: str, fields: dict[str, Any]) -> Any:
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return transformers.AutoConfig.for_model(model_type, **fields, attn_implementation="eager")


def randomize(model: Any, seed: int) -> None:
    """Draw weights that keep every part in play: unit gains, uneven norms, biases, routing biases of both signs.

    Routed experts are drawn smaller where routed_scaling_factor is large, or the model would amplify rounding: at 16,
    one part in 10^7 on the embedding moves transformers' own logits by 10^-5.
    """
    generator = torch.Generator().manual_seed(seed)
    shrink = 2 / max(2.0, getattr(model.config, "routed_scaling_factor", 1.0))
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        with torch.no_grad():
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(0.4 * drawn - 0.9)  # most sums negative: a mask of zeros would win
            elif "norm" in name:
                tensor.copy_(1 + 0.2 * drawn)
            elif name.endswith("bias") or "embed_tokens" in name:
                tensor.copy_(0.3 * drawn)
            elif tensor.dim() >= 2:
                gain = shrink if "experts.down_proj" in name and "shared" not in name else 1.0
                tensor.copy_(drawn * gain * tensor.shape[-1] ** -0.5)


def load_ours(directory: Path) -> tuple[ModelSpec, Decoder]:
    spec, state = load_hf(directory)
    model = build(spec, seed=None)
    model.load_state_dict(state)
    return spec, model.eval()


def make_pair(name: str, directory: Path) -> Pair:
    model_type, fields = CASES[name]
    theirs = AutoModelForCausalLM.from_config(config_of(model_type, fields)).eval()
    randomize(theirs, seed=len(name))
    theirs.save_pretrained(directory)
    spec, ours = load_ours(directory)
    tokens_BT = torch.randint(0, spec.vocab_size, (2, 80), generator=torch.Generator().manual_seed(5))
    return Pair(name, theirs, ours, spec, directory, tokens_BT)


@pytest.fixture(scope="session", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("theirs") / "model")


@pytest.fixture(scope="session", params=LATENT_CASES)
def latent_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(request.param, tmp_path_factory.mktemp("theirs") / "model")


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    """Their progress bars and advice are no part of what is tested."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)


@pytest.fixture
def published_v2_config() -> dict[str, Any]:
    """DeepSeek-V2's config.json in the fields of its release, at the size of these tests."""
    fields = {name: value for name, value in (V2 | LIMITED).items() if value is not None}
    scaling = {name: value for name, value in YARN.items() if name not in ("rope_type", "rope_theta")}
    return fields | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "rope_theta": YARN["rope_theta"],
        "rope_scaling": scaling | {"type": "yarn", "mscale": 0.707, "mscale_all_dim": 0.707},
        "scoring_func": "softmax",
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "float32",
    }


def read_config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config
