# SPDX-License-Identifier: Apache-2.0
"""The five model families: architecture, special tokens, config.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capibara_axion.demo.decoder import Decoder
from capibara_axion.demo.tokenizer import SpecialTokens
from capibara_axion.demo.vision import TOKENS_PER_IMAGE, vision_config


@dataclass(frozen=True)
class Family:
    """What the checkpoints of one architecture have in common.

    Attributes:
        decoder: the language model.
        special: the special tokens.
        prompt_end: the token with which the chat template's generation prompt ends.
        config: what config.json holds beyond the sizes.
        vision: whether the model also reads images.
    """

    decoder: Decoder
    special: SpecialTokens
    prompt_end: str
    config: Callable[[Decoder, SpecialTokens], dict[str, Any]]
    vision: bool = False

    def config_json(self) -> dict[str, Any]:
        return self.config(self.decoder, self.special)


def _text_config(decoder: Decoder, special: SpecialTokens, **specific: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.vocab_size,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "tie_word_embeddings": decoder.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "eos_token_id": special.id_of(special.eos),
        "pad_token_id": special.id_of(special.pad),
        "bos_token_id": None if special.bos is None else special.id_of(special.bos),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    return config | specific


def _phi3_config(decoder: Decoder, special: SpecialTokens) -> dict[str, Any]:
    rotary_factor = 0.75
    pairs = int(decoder.head_dim * rotary_factor) // 2
    return _text_config(
        decoder,
        special,
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
        hidden_act="silu",
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        original_max_position_embeddings=2048,
        partial_rotary_factor=rotary_factor,
        rope_theta=10000.0,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0 + 0.01 * pair for pair in range(pairs)],
            "long_factor": [1.0 + 0.25 * pair for pair in range(pairs)],
        },
        sliding_window=None,
    )


def _mistral_config(decoder: Decoder, special: SpecialTokens) -> dict[str, Any]:
    return _text_config(
        decoder,
        special,
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        head_dim=decoder.head_dim,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        rope_theta=1000000.0,
        sliding_window=None,
    )


def _qwen2_config(decoder: Decoder, special: SpecialTokens) -> dict[str, Any]:
    return _text_config(
        decoder,
        special,
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        hidden_act="silu",
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
        rope_theta=1000000.0,
        use_sliding_window=False,
    )


def _cohere_config(decoder: Decoder, special: SpecialTokens) -> dict[str, Any]:
    return _text_config(
        decoder,
        special,
        architectures=["CohereForCausalLM"],
        model_type="cohere",
        hidden_act="silu",
        layer_norm_eps=1e-5,
        logit_scale=decoder.logit_scale,
        max_position_embeddings=8192,
        rope_theta=10000.0,
        attention_bias=False,
        use_qk_norm=False,
    )


def _gemma3_config(decoder: Decoder, special: SpecialTokens) -> dict[str, Any]:
    text = _text_config(
        decoder,
        special,
        model_type="gemma3_text",
        head_dim=decoder.head_dim,
        query_pre_attn_scalar=decoder.head_dim,
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        sliding_window=64,
        layer_types=["sliding_attention"] * (decoder.layers - 1) + ["full_attention"],
    )
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision_config(),
        "mm_tokens_per_image": TOKENS_PER_IMAGE,
        "boi_token_index": special.id_of("<start_of_image>"),
        "eoi_token_index": special.id_of("<end_of_image>"),
        "image_token_index": special.id_of("<image_soft_token>"),
        "eos_token_id": [special.id_of(stop) for stop in special.stops],
        "tie_word_embeddings": decoder.tied,
        "torch_dtype": "bfloat16",
    }


PHI3 = Family(
    Decoder(tied=True, fused=True),
    SpecialTokens(
        tokens=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        stops=("<|end|>", "<|endoftext|>"),
    ),
    "<|assistant|>",
    _phi3_config,
)
MISTRAL = Family(
    Decoder(),
    SpecialTokens(
        tokens=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        pad="<unk>",
        stops=("</s>",),
        prepend_bos=True,
    ),
    "[/INST]",
    _mistral_config,
)
QWEN2 = Family(
    Decoder(qkv_bias=True),
    SpecialTokens(
        tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    "\u010a",  # the newline byte
    _qwen2_config,
)
GEMMA3 = Family(
    Decoder(tied=True, gemma_norms=True),
    SpecialTokens(
        tokens=(
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        stops=("<end_of_turn>", "<eos>"),
        prepend_bos=True,
        named=(
            ("image_token", "<image_soft_token>"),
            ("boi_token", "<start_of_image>"),
            ("eoi_token", "<end_of_image>"),
        ),
    ),
    "\n",
    _gemma3_config,
    vision=True,
)
COHERE = Family(
    Decoder(tied=True, parallel=True, logit_scale=0.125),
    SpecialTokens(
        tokens=(
            "<PAD>",
            "<UNK>",
            "<BOS_TOKEN>",
            "<EOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        stops=("<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>"),
        prepend_bos=True,
    ),
    "<|CHATBOT_TOKEN|>",
    _cohere_config,
)
