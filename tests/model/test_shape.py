"""The `mimo-7b` shape against the tensor list of the public checkpoint, on the meta device."""

import pytest
import torch

from openmimo.config.schema import ModelConfig
from openmimo.model.mimo import MiMo

MIMO_7B = ModelConfig(
    vocab_size=151_680,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=640_000,
    max_position_embeddings=32_768,
    initializer_range=0.02,
    num_nextn_predict_layers=1,
)

LAYER = {
    "input_layernorm.weight": (4096,),
    "post_attention_layernorm.weight": (4096,),
    "self_attn.q_proj.weight": (4096, 4096),
    "self_attn.q_proj.bias": (4096,),
    "self_attn.k_proj.weight": (1024, 4096),
    "self_attn.k_proj.bias": (1024,),
    "self_attn.v_proj.weight": (1024, 4096),
    "self_attn.v_proj.bias": (1024,),
    "self_attn.o_proj.weight": (4096, 4096),
    "mlp.gate_proj.weight": (11_008, 4096),
    "mlp.up_proj.weight": (11_008, 4096),
    "mlp.down_proj.weight": (4096, 11_008),
}
MTP_LAYER = LAYER | {
    "token_layernorm.weight": (4096,),
    "hidden_layernorm.weight": (4096,),
    "final_layernorm.weight": (4096,),
    "input_proj.weight": (4096, 8192),
}


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = MiMo(MIMO_7B)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def count(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    return sum(torch.Size(shape).numel() for n, shape in shapes.items() if n.startswith(prefix))


def test_tensors_are_those_of_the_public_checkpoint(shapes: dict[str, tuple[int, ...]]) -> None:
    expected = {
        "model.embed_tokens.weight": (151_680, 4096),
        "model.norm.weight": (4096,),
        "lm_head.weight": (151_680, 4096),
    }
    for index in range(36):
        expected |= {f"model.layers.{index}.{name}": shape for name, shape in LAYER.items()}
    expected |= {f"model.mtp_layers.0.{name}": shape for name, shape in MTP_LAYER.items()}
    assert shapes == expected
    assert len(shapes) == 451


def test_parameter_counts(shapes: dict[str, tuple[int, ...]]) -> None:
    assert count(shapes, "") == 7_833_409_536
    assert count(shapes, "model.mtp_layers.") == 210_790_400
    assert count(shapes, "model.layers.") + count(shapes, "model.norm") == 6_380_056_576
