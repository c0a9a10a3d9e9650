from __future__ import annotations

import pytest

from fathom.checkpoint.hub.choice import choose_gguf, gguf_choices
from fathom.checkpoint.hub.names import HubName
from fathom.errors import CheckpointError


@pytest.mark.parametrize(
    ("file", "tag"),
    [
        ("DeepSeek-V2-Lite-Chat.Q4_K_M.gguf", "Q4_K_M"),
        ("DeepSeek-V2-Lite-Chat-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q5_k_m.gguf", "Q5_K_M"),
        ("ggml-model-f16.gguf", "F16"),
        ("model_q8_0.gguf", "Q8_0"),
        ("UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"),
        ("Q2_K_L/DeepSeek-R1-Q2_K_L-00001-of-00005.gguf", "Q2_K_L"),
        ("DeepSeek-R1-BF16/DeepSeek-R1.BF16-00001-of-00030.gguf", "BF16"),
        ("gpt-MXFP4.gguf", "MXFP4"),
        ("Q4_0/model.gguf", "Q4_0"),
        ("tiny.gguf", None),
    ],
)
def test_a_quantisation_is_read_off_the_names_that_publishers_give(file: str, tag: str | None) -> None:
    (choice,) = gguf_choices([file])
    assert choice.tag == tag


def test_a_tag_means_its_own_model_and_not_one_whose_name_contains_it() -> None:
    names = ["m-Q4_0.gguf", "m-Q4_0_4_4.gguf", "m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf", "m-imatrix.gguf", "M-F16.GGUF"]
    for tag, file in (("Q4_0", names[0]), ("Q4_K_XL", names[3]), ("UD-Q4_K_XL", names[2]), ("f16", names[5])):
        assert choose_gguf(HubName("o/n", None, tag), names).opens == file


def test_two_models_of_one_quantisation_are_told_apart_by_their_files() -> None:
    names = ["a-Q8_0.gguf", "b-Q8_0.gguf"]
    with pytest.raises(
        CheckpointError, match=r"Q8_0 is 2 models of it; choose one of o/n:a-Q8_0.gguf, o/n:b-Q8_0.gguf"
    ):
        choose_gguf(HubName("o/n", None, "Q8_0"), names)
    assert choose_gguf(HubName("o/n", None, "b-Q8_0.gguf"), names).opens == "b-Q8_0.gguf"


def test_a_choice_in_a_repository_without_gguf_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"o/n:Q8_0: publishes no .gguf files; give o/n alone"):
        choose_gguf(HubName("o/n", None, "Q8_0"), ["model.safetensors", "mmproj-F16.gguf"])
