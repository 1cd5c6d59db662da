# SPDX-License-Identifier: Apache-2.0
"""Registers the operators as `torch.ops.capibara_axion.*`; importing it is enough.

The schemas and the fakes (shapes and dtypes without data, for `torch.compile` and meta tensors)
are defined here; the CPU implementations are C++ functions that the native module registers
through torch's stable C interface. A Python implementation costs about four times as much a call:
`python benchmarks/call_overhead.py` measures both.

The operators are for inference: they have no gradients, and `backward` through one warns and gives
none.
"""

from __future__ import annotations

from pathlib import Path

import torch

from capibara_axion import _core, packed_int4
from capibara_axion.packed_linear import empty_packed, type_number

# activation: 0 none, 1 silu, 2 gelu, 3 gelu_tanh
_OPTIONS = "Tensor? bias=None, Tensor? residual=None, int activation=0"
# window_left, window_right: -1 for no limit. ranges: int32 [n, 3], sequence, begin, end.
_ATTENTION = (
    "float? scale=None, bool causal=True, int window_left=-1, int window_right=-1,"
    " float softcap=0.0, Tensor? alibi_slopes=None, Tensor? sinks=None, Tensor? ranges=None"
)
_FLASH = (
    f"Tensor q, Tensor k, Tensor v, Tensor? query_start=None, Tensor? key_start=None, {_ATTENTION}"
)
# Of a PagedKVCache. type: 0 float32, 1 float16, 2 bfloat16, 3 fp8_e4m3, 4 fp8_e5m2; compute: the
# first three.
_PAGED = (
    "Tensor q, Tensor data, Tensor? key_scales, Tensor? value_scales, int type, int compute,"
    f" Tensor block_table, Tensor seq_lens, Tensor? query_start=None, {_ATTENTION}"
)
_SCHEMAS = (
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    "rms_norm_out(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()",
    "fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()",
    "layer_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    "layer_norm_out(Tensor(a!) out, Tensor x, Tensor weight, float eps) -> ()",
    "softmax(Tensor x, float scale, Tensor? lengths) -> Tensor",
    "softmax_out(Tensor(a!) out, Tensor x, float scale, Tensor? lengths) -> ()",
    "silu_and_mul(Tensor gate_up, Tensor? up) -> Tensor",
    "silu_and_mul_out(Tensor(a!) out, Tensor gate_up, Tensor? up) -> ()",
    "gelu_and_mul(Tensor gate_up, Tensor? up) -> Tensor",
    "gelu_and_mul_out(Tensor(a!) out, Tensor gate_up, Tensor? up) -> ()",
    "gelu_tanh_and_mul(Tensor gate_up, Tensor? up) -> Tensor",
    "gelu_tanh_and_mul_out(Tensor(a!) out, Tensor gate_up, Tensor? up) -> ()",
    "rope(Tensor positions, Tensor(a!) q, Tensor(b!)? k, Tensor cos_sin_cache,"
    " int head_dim, bool neox) -> ()",
    "matmul(Tensor a, Tensor b) -> Tensor",
    "matmul_out(Tensor(a!) out, Tensor a, Tensor b) -> ()",
    f"linear(Tensor x, Tensor weight, {_OPTIONS}) -> Tensor",
    f"linear_out(Tensor(a!) out, Tensor x, Tensor weight, {_OPTIONS}) -> ()",
    f"packed_linear(Tensor x, Tensor packed, int out_features, {_OPTIONS}) -> Tensor",
    "packed_linear_out(Tensor(a!) out, Tensor x, Tensor packed, int out_features,"
    f" {_OPTIONS}) -> ()",
    # type: 0 float32, 1 bfloat16, 2 float16, 3 int8
    "pack_linear(Tensor weight, Tensor(a!) packed, int type) -> ()",
    "quantize_int4(Tensor weight, int group_size, bool symmetric, Tensor(a!) codes,"
    " Tensor(b!) scales, Tensor(c!) zeros) -> ()",
    f"flash_attention({_FLASH}) -> Tensor",
    f"flash_attention_out(Tensor(a!) out, {_FLASH}) -> ()",
    f"paged_attention({_PAGED}) -> Tensor",
    f"paged_attention_out(Tensor(a!) out, {_PAGED}) -> ()",
    "kv_cache_append(Tensor(a!) data, Tensor(b!)? key_scales, Tensor(c!)? value_scales, int type,"
    " int compute, Tensor key, Tensor value, Tensor slot_mapping) -> ()",
    "kv_cache_gather(Tensor data, Tensor? key_scales, Tensor? value_scales, int type, int compute,"
    " Tensor slots, Tensor(a!) key, Tensor(b!) value) -> ()",
    # format: 0 e4m3, 1 e5m2
    "fp8_encode(Tensor x, int format, float factor, Tensor(a!) codes) -> ()",
    "fp8_decode(Tensor codes, int format, Tensor(a!) out) -> ()",
)
_IN_PLACE = (
    "rms_norm_out",
    "fused_add_rms_norm",
    "layer_norm_out",
    "softmax_out",
    "silu_and_mul_out",
    "gelu_and_mul_out",
    "gelu_tanh_and_mul_out",
    "rope",
    "matmul_out",
    "linear_out",
    "packed_linear_out",
    "pack_linear",
    "quantize_int4",
    "flash_attention_out",
    "paged_attention_out",
    "kv_cache_append",
    "kv_cache_gather",
    "fp8_encode",
    "fp8_decode",
)


def _one_device(*arguments: object) -> None:
    """Refuses tensors of different devices, which torch would otherwise send to a fake alone."""
    devices = {value.device for value in arguments if isinstance(value, torch.Tensor)}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"capibara_axion: expected all tensors on one device, got {names}")


def _dense(like: torch.Tensor, cols: int) -> torch.Tensor:
    """What the native operators return: contiguous, `cols` in the last dimension."""
    return like.new_empty((*like.shape[:-1], cols))


def _like_x(x: torch.Tensor, *others: object) -> torch.Tensor:
    _one_device(x, *others)
    return _dense(x, x.shape[-1])


def _gated(gate_up: torch.Tensor, up: torch.Tensor | None) -> torch.Tensor:
    _one_device(gate_up, up)
    cols = gate_up.shape[-1]
    return _dense(gate_up, cols // 2 if up is None else cols)


def _matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    _one_device(a, b)
    shape = [*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])]
    shape += a.shape[-2:-1]
    shape += b.shape[-1:] if b.dim() > 1 else ()
    return a.new_empty(shape)


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: int = 0,
) -> torch.Tensor:
    _one_device(x, weight, bias, residual)
    return _dense(x, weight.shape[0])


def _packed_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    out_features: int,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: int = 0,
) -> torch.Tensor:
    _one_device(x, packed, bias, residual)
    return _dense(x, out_features)


def _like_q(q: torch.Tensor, *others: object, **options: object) -> torch.Tensor:
    _one_device(q, *others, *options.values())
    return q.new_empty(q.shape)


def _in_place(*arguments: object, **options: object) -> None:
    _one_device(*arguments, *options.values())


def _register() -> torch.library.Library:
    library = torch.library.Library("capibara_axion", "DEF")
    for schema in _SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for name in ("rms_norm", "layer_norm", "softmax"):
        torch.library.register_fake(f"capibara_axion::{name}", _like_x, lib=library)
    for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"):
        torch.library.register_fake(f"capibara_axion::{name}", _gated, lib=library)
    for name, fake in (("matmul", _matmul), ("linear", _linear), ("packed_linear", _packed_linear)):
        torch.library.register_fake(f"capibara_axion::{name}", fake, lib=library)
    for name in ("flash_attention", "paged_attention"):
        torch.library.register_fake(f"capibara_axion::{name}", _like_q, lib=library)
    for name in _IN_PLACE:
        torch.library.register_fake(f"capibara_axion::{name}", _in_place, lib=library)
    libtorch = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    _core.register_torch_ops(str(libtorch))
    _core.rebind_openmp()  # torch's OpenMP runtime, if ours was looked up before it was there
    return library


# Deleting the library object would unregister the operators.
_LIBRARY = _register()


def pack_weight(
    weight: torch.Tensor,
    dtype: str | None = None,
    *,
    group_size: int = packed_int4.DEFAULT_GROUP,
    symmetric: bool = False,
    method: str = packed_int4.DEFAULT_METHOD,
) -> torch.Tensor:
    """A linear layer's weight, packed for `torch.ops.capibara_axion.packed_linear`.

    Args:
        weight: `[out_features, in_features]`, float32, float16 or bfloat16, on the CPU.
        dtype: of the products: "f32", "bf16", "f16", "int8" or "int4", as
            `capibara_axion.PackedLinear` describes them; the weight's own if None.
        group_size: as `PackedLinear` has it, like the others; of int4 alone.
        symmetric: of int4 alone.
        method: of int4 alone.

    Returns:
        uint8 `[nbytes]`, for this process: the layout is that of the instruction set that was
        chosen here. It is aligned to 64 bytes, which `packed_linear` insists on, as torch's own
        memory is: copies of the tensor work, slices do not.
    """
    number = type_number(dtype, str(weight.dtype).removeprefix("torch."))
    if number == type_number("int4", ""):
        parts = packed_int4.quantize(weight, group_size, symmetric)
        return torch.from_numpy(packed_int4.pack(*parts, packed_int4.digits_of(method)))
    packed = torch.from_numpy(empty_packed(number, weight.shape))
    torch.ops.capibara_axion.pack_linear(weight.detach(), packed, number)
    return packed
