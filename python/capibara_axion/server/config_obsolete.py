# SPDX-License-Identifier: Apache-2.0
"""Keys that are read because files written for an older vLLM have them, and what became of each.

What is said of vLLM here was looked up in 0.32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from capibara_axion.server.config_fields import Count, Text

RemarkKind = Literal["mapped", "no effect"]


@dataclass(frozen=True)
class Obsolete:
    """Marks the type of such a key.

    Attributes:
        text: what became of it, and what to use instead.
        kind: "mapped": it stands for something else today; "no effect": it changes nothing.
    """

    text: str
    kind: RemarkKind = "no effect"

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "deprecated": True}


def obsolete(section: type[BaseModel], name: str) -> Obsolete | None:
    """What is to be said of a field, if it is an obsolete one."""
    metadata = section.model_fields[name].metadata
    return next((mark for mark in metadata if isinstance(mark, Obsolete)), None)


# Of an expert, some of them of performance_tuning too

SchedulerSteps = Annotated[
    Count | None,
    Obsolete(
        "vLLM has no multi-step scheduling any more; 1 or 2 steps asked for quick first tokens and "
        'stand for profile "latency", more for "throughput", unless profile is set',
        "mapped",
    ),
]
BlockSize = Annotated[
    Count | None,
    Obsolete(
        "blocks of the KV cache have the 128 tokens that vLLM gives them on the CPU; with "
        "num_gpu_blocks_override it says how many tokens the cache holds",
        "mapped",
    ),
]
GpuMemoryUtilization = Annotated[
    float | None,
    Obsolete(
        "a KV cache is as large as num_gpu_blocks_override x block_size or kv_cache_memory_bytes "
        "say; lazy_loading.memory_threshold bounds all experts together"
    ),
]
SwapSpace = Annotated[
    float | None,
    Obsolete(
        "vLLM computes preempted requests anew instead of swapping them out; a larger KV cache "
        "(num_gpu_blocks_override) has fewer of them"
    ),
]
CpuOffload = Annotated[
    float | None,
    Obsolete("it moved weights from a GPU's memory to the host's, where all of them are here"),
]
LongestCapture = Annotated[
    Count | None,
    Obsolete(
        "it bounded CUDA graphs, of which the CPU has none; use_captured_graph compiles a model "
        "for every length"
    ),
]
V2BlockManager = Annotated[
    bool | None, Obsolete("vLLM has one block manager only since it dropped the first")
]
Device = Annotated[Literal["cpu"] | None, Obsolete("the CPU is the only device here")]
CachedTokens = Annotated[
    Count | None,
    Obsolete(
        "vLLM has no such option; a KV cache holds num_gpu_blocks_override x block_size tokens"
    ),
]

# Of neon_optimizations and flash_attention_config

SoftmaxFastExp = Annotated[
    bool | None,
    Obsolete("softmax is part of attention, whose exp is a vectorised polynomial in any case"),
]
AclGemm = Annotated[
    bool | None,
    Obsolete(
        "it holds for the whole process: CAPIBARA_AXION_GEMM=acl, in builds with Arm Compute "
        "Library, whose products take more instructions than ours"
    ),
]
QuantizationQ4 = Annotated[
    bool | None, Obsolete("an expert's quantization says how its weights are quantised")
]
ATTENTION_BLOCKS = Obsolete(
    "attention takes sequences of every length and chooses its own blocks; max_model_len bounds "
    "the length"
)

# Of the application that the file was written for

_AUTO = 'model "auto" is routed by rules'

EmbeddingModel = Annotated[dict[str, Any] | None, Obsolete(f"{_AUTO}, not by embeddings")]
SpeculativeRouting = Annotated[
    dict[str, Any] | None, Obsolete(f"{_AUTO}, at once: there is no choice to run ahead of")
]
RoutingThreshold = Annotated[
    float | None, Obsolete(f"{_AUTO}, which have no probability to compare with it")
]
FastClassifier = Annotated[bool | None, Obsolete(f"{_AUTO}, not by a model")]
Rag = Annotated[
    dict[str, Any] | None,
    Obsolete("finding documents is for an application in front of this server"),
]
Consensus = Annotated[
    bool | None,
    Obsolete("asking several experts is for an application in front of this server"),
]
ConsensusModel = Annotated[Text | None, Obsolete("it is used with enable_consensus only")]
ChunkSize = Annotated[int | None, Obsolete("a stream sends each token as soon as it is there")]
OptimizationFlags = Annotated[
    dict[str, Any] | None,
    Obsolete("they described a build; an expert's neon_optimizations switches operators off"),
]
