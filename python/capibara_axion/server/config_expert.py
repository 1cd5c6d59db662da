# SPDX-License-Identifier: Apache-2.0
"""The configuration of one expert."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from capibara_axion.server.config_fields import WEEK_S, Bytes, Count, FilePath, Section, Text
from capibara_axion.server.config_obsolete import (
    ATTENTION_BLOCKS,
    AclGemm,
    BlockSize,
    CpuOffload,
    Device,
    GpuMemoryUtilization,
    LongestCapture,
    QuantizationQ4,
    SchedulerSteps,
    SoftmaxFastExp,
    SwapSpace,
    V2BlockManager,
)

_EXPERT_ID = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"

# Blocks in which a file that gives their number but not their size counts the KV cache, as an
# older vLLM did.
_DEFAULT_BLOCK_SIZE = 16

# What a switch of `neon_optimizations` leaves to vLLM, as CAPIBARA_AXION_DISABLE names it.
_OPS_OF_SWITCH = {
    "rmsnorm": ("rms_norm", "fused_add_rms_norm", "layer_norm"),
    "rope": ("rope",),
    "swiglu": ("silu_and_mul", "gelu_and_mul"),
    "flash_attention": ("attention",),
}


def _keep_alive(seconds: float) -> float:
    if -1 < seconds < 0:
        raise ValueError("expected -1 (for ever) or seconds from 0 on")
    return seconds


class NeonOptimizations(Section):
    """Which of our operators an expert runs with; what is switched off is left to vLLM.

    The names are of a time when the kernels were for NEON only: a switch holds for every
    instruction set.
    """

    rmsnorm: bool = True
    """RMSNorm, alone and with the residual added, and Cohere's LayerNorm."""

    rope: bool = True
    """Rotary position embedding."""

    swiglu: bool = True
    """The gated activations SwiGLU and GeGLU."""

    flash_attention: bool = True
    """Attention and its KV cache. An FP8 cache stays ours, since vLLM's own attention takes one on
    x86 with AVX-512 or AMX only."""

    matmul_8x8: bool = True
    """Matrix products of linear layers; `false` is `linear_backend` "stock", unless that is set."""

    softmax_fast_exp: SoftmaxFastExp = None
    """Softmax with an exp computed by a polynomial."""

    acl_gemm: AclGemm = None
    """Matrix products by Arm Compute Library."""

    quantization_q4: QuantizationQ4 = None
    """Weights in 4 bits."""


class FlashAttentionConfig(Section):
    """How an older implementation of attention was set up."""

    block_size: Count | None = None
    """Keys that were processed together."""

    enable_for_seq_len_above: Annotated[int, Field(ge=0)] | None = None
    """Shortest sequence that it was used for."""

    max_seq_len: Count | None = None
    """Longest sequence that it was used for."""


# Of each profile, and without one: requests and tokens of one step. Running streams wait for a step
# of a long prompt: twice as many tokens a step were twice the wait, and the prompt's own first
# token came no sooner (benchmarks/results/server_profiles.json). Fewer than 512 would cut images,
# whose tokens must be computed together, in two.
_STEP_LIMITS = {None: (64, 512), "latency": (16, 512), "throughput": (64, 8192)}


class ExpertConfig(Section):
    """One model, how its engine is set up, and when it is loaded.

    Keys that vLLM has are named as vLLM names them.
    """

    expert_id: str = Field(pattern=_EXPERT_ID)
    """Name that requests give as `model`. "auto" is taken: it lets the server choose."""

    model_path: FilePath
    """Folder of the checkpoint, relative to this file, or a Hugging Face repository
    (`owner/name`)."""

    domain: Text = ""
    """What the expert is for, in a word: general, technical, coding, ..."""

    description: Text = ""
    """What the expert is for, in a sentence."""

    use_cases: list[Text] = Field(default_factory=list)
    """What the expert is for, in examples."""

    priority: int = Field(default=0, ge=-(2**31), le=2**31 - 1)
    """A higher one is loaded first and evicted last."""

    pinned: bool = False
    """Load it when the server starts and keep it."""

    keep_alive_s: Annotated[float, Field(ge=-1, le=WEEK_S), AfterValidator(_keep_alive)] | None = (
        None
    )
    """Seconds after its last request until it is unloaded; 0: at once; -1: never; null:
    `lazy_loading.auto_unload_after_s`."""

    max_requests: Count | None = None
    """Requests that may wait for it or run in it; more are refused with 429. Null:
    `server_config.max_requests_per_model`."""

    threads: Count | None = None
    """Most cores that it may compute on; null: all."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of weights and activations; "auto" is the checkpoint's."""

    quantization: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """How weights are quantised: "capibara_int8" quantises an unquantised checkpoint to 8 bits
    when it is loaded; "awq" and others of vLLM's name what the checkpoint is. Null: as its own
    configuration says."""

    linear_backend: Literal["auto", "capibara", "stock"] | None = None
    """Who computes linear layers: "capibara" (this project), "stock" (vLLM), "auto" (the faster
    one, measured when the model is loaded). Null: as the variable CAPIBARA_AXION_LINEAR says."""

    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Type of the KV cache; "auto" is the model's. The FP8 ones ("fp8" is "fp8_e4m3") halve its
    memory."""

    tensor_parallel_size: Count = 1
    """Processes that each layer is divided over."""

    pipeline_parallel_size: Count = 1
    """Groups of processes that the layers are divided over."""

    max_model_len: Count | None = None
    """Longest prompt and answer together, in tokens; null: the model's own."""

    max_num_seqs: Count = 64
    """Requests that one step computes together at most."""

    max_num_batched_tokens: Count | None = None
    """Tokens that one step computes at most, which is how much of a long prompt it takes; null:
    the profile's."""

    profile: Literal["latency", "throughput"] | None = None
    """What `max_num_seqs` and `max_num_batched_tokens` are where the file does not set them:
    "latency" lets a long prompt hold up the answers that are being written as little as possible;
    "throughput" computes most tokens a second; null: as "latency", for 64 requests a step."""

    enable_chunked_prefill: bool | None = None
    """Whether a long prompt is divided over steps; null: vLLM's default, true."""

    enable_prefix_caching: bool | None = None
    """Whether requests that begin alike share that part of the KV cache; null: vLLM's default,
    true for the models that can."""

    use_captured_graph: bool | None = None
    """Compile the model when it is first loaded, and keep what was compiled for later loads.
    `enforce_eager: true` prevents it."""

    enforce_eager: bool | None = None
    """Never compile. `false`, unless `use_captured_graph` is `false`, compiles; null: as
    `use_captured_graph` says."""

    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""

    num_gpu_blocks_override: Count | None = None
    """Capacity of the KV cache in blocks of `block_size` (if not set: 16) tokens. One sequence of
    full length fits in any case; null: four."""

    kv_cache_memory_bytes: Bytes | None = None
    """Size of the KV cache in bytes; instead of a capacity in tokens."""

    chat_template: FilePath | None = None
    """File with the chat template, relative to this file; null: the checkpoint's own."""

    tool_call_parser: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """vLLM's parser of this model's tool calls ("hermes", "mistral", ...); null: no tool calls."""

    enable_neon: bool = True
    """`false` leaves every operator of `neon_optimizations` to vLLM."""

    neon_optimizations: NeonOptimizations = Field(default_factory=NeonOptimizations)
    """Which of our operators it runs with."""

    enable_flash_attention: bool = True
    """`false` is `neon_optimizations.flash_attention: false`."""

    num_scheduler_steps: SchedulerSteps = None
    """Steps between two turns of the scheduler."""

    block_size: BlockSize = None
    """Tokens of a block of the KV cache."""

    gpu_memory_utilization: GpuMemoryUtilization = None
    """Part of the memory that an engine took."""

    swap_space: SwapSpace = None
    """GiB of host memory for preempted requests."""

    cpu_offload_gb: CpuOffload = None
    """GiB of weights kept in host memory."""

    max_context_len_to_capture: LongestCapture = None
    """Longest sequence that captured graphs covered."""

    use_v2_block_manager: V2BlockManager = None
    """The second of vLLM's block managers."""

    device: Device = None
    """Where the model runs."""

    flash_attention_config: Annotated[FlashAttentionConfig | None, ATTENTION_BLOCKS] = None
    """How an older implementation of attention was set up."""

    @model_validator(mode="after")
    def _take_linear_backend_from_the_switches(self) -> ExpertConfig:
        if self.linear_backend is None and not self.wants("matmul_8x8"):
            self.fill("linear_backend", "stock")
        return self

    @property
    def ranks(self) -> int:
        """Processes that the model is spread over."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def has_fp8_cache(self) -> bool:
        """Whether keys and values are stored in 8 bits."""
        return self.kv_cache_dtype.startswith("fp8")

    @property
    def step_limits(self) -> tuple[int, int | None]:
        """Requests and tokens that one step computes at most; no tokens: as vLLM chooses.

        For models that generate: one that only reads computes a prompt in one step.
        """
        seqs, tokens = self.max_num_seqs, self.max_num_batched_tokens
        profile_seqs, profile_tokens = _STEP_LIMITS[self.profile]
        if "max_num_seqs" not in self.model_fields_set:
            seqs = profile_seqs
        # A prompt that is not divided over steps must fit into one.
        if tokens is None and self.enable_chunked_prefill is not False:
            tokens = max(profile_tokens, seqs)
        return seqs, tokens

    @property
    def compiled(self) -> bool:
        """Whether the model is compiled; eager is the default."""
        if self.enforce_eager:
            return False
        if self.use_captured_graph is None:
            return self.enforce_eager is False
        return self.use_captured_graph

    @property
    def disabled_ops(self) -> tuple[str, ...]:
        """Our operators that this expert leaves to vLLM, named as in CAPIBARA_AXION_DISABLE."""
        return tuple(
            op
            for switch, ops in _OPS_OF_SWITCH.items()
            if not self.wants(switch) and not (switch == "flash_attention" and self.has_fp8_cache)
            for op in ops
        )

    def wants(self, switch: str) -> bool:
        """Whether a switch of `neon_optimizations` is on, with what stands for it elsewhere."""
        on = self.enable_neon and getattr(self.neon_optimizations, switch)
        return on and (self.enable_flash_attention or switch != "flash_attention")

    def kv_cache_tokens(self) -> int | None:
        """Capacity asked of the KV cache in tokens, or None when the file does not say."""
        if self.num_gpu_blocks_override is None:
            return None
        return self.num_gpu_blocks_override * (self.block_size or _DEFAULT_BLOCK_SIZE)

    def fill(self, name: str, value: Any) -> None:
        """Set what the file leaves open; `model_fields_set` goes on to say what it does not."""
        self.__dict__[name] = value
