# SPDX-License-Identifier: Apache-2.0
"""The image side of the Gemma 3 demo checkpoint: SigLIP tower, projector, processor files."""

from __future__ import annotations

from typing import Any

from capibara_axion.demo.tensors import Array, Draws

_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS = 64, 128, 2, 2
_IMAGE_SIZE, _PATCH_SIZE = 112, 14
# The projector averages 2x2 patches: (112 / 14 / 2) squared.
TOKENS_PER_IMAGE = 16


def vision_config() -> dict[str, Any]:
    """The `vision_config` of config.json."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_channels": 3,
        "image_size": _IMAGE_SIZE,
        "patch_size": _PATCH_SIZE,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "vision_use_head": False,
    }


def processor_files() -> dict[str, dict[str, Any]]:
    """What the image processor reads, by file name."""
    return {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_pan_and_scan": False,
            "image_seq_length": TOKENS_PER_IMAGE,
        },
        "processor_config.json": {
            "processor_class": "Gemma3Processor",
            "image_seq_length": TOKENS_PER_IMAGE,
        },
    }


def vision_tensors(draws: Draws, *, text_hidden_size: int, text_std: float) -> dict[str, Array]:
    """Tower and projector.

    Args:
        text_std: standard deviation of the text embeddings that image embeddings stand between.
    """
    prefix = "vision_tower.vision_model."
    patches = (_IMAGE_SIZE // _PATCH_SIZE) ** 2
    pixels = 3 * _PATCH_SIZE**2
    tensors = {
        f"{prefix}embeddings.patch_embedding.weight": draws.linear(_HIDDEN, pixels).reshape(
            _HIDDEN, 3, _PATCH_SIZE, _PATCH_SIZE
        ),
        f"{prefix}embeddings.patch_embedding.bias": draws.uniform(_HIDDEN, std=0.1),
        f"{prefix}embeddings.position_embedding.weight": draws.uniform(patches, _HIDDEN, std=0.5),
    }
    for index in range(_LAYERS):
        layer = f"{prefix}encoder.layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= _affine(draws, f"{layer}self_attn.{name}", _HIDDEN, _HIDDEN)
        tensors |= _affine(draws, f"{layer}mlp.fc1", _INTERMEDIATE, _HIDDEN)
        tensors |= _affine(draws, f"{layer}mlp.fc2", _HIDDEN, _INTERMEDIATE)
        tensors |= _layer_norm(draws, f"{layer}layer_norm1") | _layer_norm(
            draws, f"{layer}layer_norm2"
        )
    tensors |= _layer_norm(draws, f"{prefix}post_layernorm")
    tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = draws.uniform(_HIDDEN, std=0.05)
    tensors["multi_modal_projector.mm_input_projection_weight"] = draws.uniform(
        _HIDDEN, text_hidden_size, std=text_std * _HIDDEN**-0.5
    )
    return tensors


def _affine(draws: Draws, name: str, rows: int, columns: int) -> dict[str, Array]:
    return {
        f"{name}.weight": draws.linear(rows, columns, gain=0.5),
        f"{name}.bias": draws.uniform(rows, std=0.05),
    }


def _layer_norm(draws: Draws, name: str) -> dict[str, Array]:
    return {
        f"{name}.weight": draws.uniform(_HIDDEN, std=0.05, mean=1.0),
        f"{name}.bias": draws.uniform(_HIDDEN, std=0.05),
    }
