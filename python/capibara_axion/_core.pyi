# SPDX-License-Identifier: Apache-2.0
# The native module. Its operators check their arguments; `ops.py` documents them.
from typing import Any, TypedDict, TypeVar

from numpy.typing import NDArray

Array = NDArray[Any]
# Results have the type of the first argument.
First = TypeVar("First")

class Cpu(TypedDict):
    architecture: str
    model: str
    core: str
    features: list[str]
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    logical_cpus: int

class Isa(TypedDict):
    name: str
    description: str
    required: list[str]
    runs_here: bool

class Op(TypedDict):
    name: str
    built: list[str]
    chosen: str

class Crossover(TypedDict):
    type: str
    least_m: int
    most_m: int | None
    least_weights: int
    backend: str
    measured: str

class GemmBackends(TypedDict):
    choice: str
    acl: str
    crossovers: list[Crossover]

__version__: str
compiler: str

def rms_norm(x: First, weight: Array, eps: float, out: Array | None) -> First: ...
def layer_norm(x: First, weight: Array, eps: float, out: Array | None) -> First: ...
def fused_add_rms_norm(x: Array, residual: Array, weight: Array, eps: float) -> None: ...
def softmax(x: First, scale: float, lengths: Array | None, out: Array | None) -> First: ...
def silu_and_mul(gate: First, up: Array | None, out: Array | None) -> First: ...
def gelu_and_mul(gate: First, up: Array | None, out: Array | None) -> First: ...
def gelu_tanh_and_mul(gate: First, up: Array | None, out: Array | None) -> First: ...
def rope(
    q: Array,
    k: Array | None,
    cos_sin_cache: Array,
    positions: Array,
    head_dim: int,
    neox: bool,
) -> None: ...
def matmul(a: First, b: Array, out: Array | None) -> First: ...
def linear(
    x: First,
    weight: Array,
    bias: Array | None,
    residual: Array | None,
    activation: int,
    out: Array | None,
) -> First: ...
def packed_linear(
    x: First,
    packed: Array,
    out_features: int,
    bias: Array | None,
    residual: Array | None,
    activation: int,
    out: Array | None,
) -> First: ...
def pack_linear(weight: Array, packed: Array, type: int) -> None: ...
def unpack_linear(packed: Array) -> tuple[Array, Array | None]: ...
def repack_linear(type: int, values: Array, scales: Array | None, packed: Array) -> None: ...
def quantize_int4(
    weight: First, group_size: int, symmetric: bool, codes: Array, scales: Array, zeros: Array
) -> None: ...
def pack_int4(
    codes: Array, scales: Array, zeros: Array | None, digits: int, packed: Array
) -> None: ...
def unpack_int4(packed: Array) -> tuple[Array, Array, Array]: ...
def packed_int4_nbytes(n: int, k: int, group_size: int) -> int: ...
def packed_nbytes(type: int, n: int, k: int) -> int: ...
def aligned_empty(nbytes: int) -> Array: ...
def flash_attention(
    q: First,
    k: Array,
    v: Array,
    query_start: Array | None,
    key_start: Array | None,
    scale: float | None,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Array | None,
    sinks: Array | None,
    ranges: Array | None,
    out: Array | None,
) -> First: ...
def paged_attention(
    q: First,
    data: Array,
    key_scales: Array | None,
    value_scales: Array | None,
    type: int,
    compute: int,
    block_table: Array,
    seq_lens: Array,
    query_start: Array | None,
    scale: float | None,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Array | None,
    sinks: Array | None,
    ranges: Array | None,
    out: Array | None,
) -> First: ...
def kv_cache_append(
    data: Array,
    key_scales: Array | None,
    value_scales: Array | None,
    type: int,
    compute: int,
    key: Array,
    value: Array,
    slot_mapping: Array,
) -> None: ...
def kv_cache_gather(
    data: Array,
    key_scales: Array | None,
    value_scales: Array | None,
    type: int,
    compute: int,
    slots: Array,
    key: Array,
    value: Array,
) -> None: ...
def fp8_encode(x: Array, format: int, factor: float, codes: Array) -> None: ...
def fp8_decode(codes: Array, format: int, out: Array) -> None: ...
def register_torch_ops(libtorch: str) -> None: ...
def cpu() -> Cpu: ...
def isas() -> list[Isa]: ...
def ops() -> list[Op]: ...
def gemm_backends() -> GemmBackends: ...
def chosen_isa() -> str: ...
def call_counts() -> dict[str, int]: ...
def reset_call_counts() -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def openmp_library() -> str: ...
def load_openmp_from(path: str) -> None: ...
def rebind_openmp() -> None: ...
