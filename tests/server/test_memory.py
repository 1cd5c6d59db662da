# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from capibara_axion.server import memory
from capibara_axion.server.config import ExpertConfig
from capibara_axion.server.memory import Overhead, Prediction

MIB, GIB = 1024**2, 1024**3
ELEMENT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I32": 4, "F8_E4M3": 1}

VOCAB, HIDDEN, LAYERS = 1000, 64, 2
CONFIG = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": HIDDEN,
    "max_position_embeddings": 100_000,
}
EMBEDDING = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
HEAD = {"lm_head.weight": (VOCAB, HIDDEN)}
LAYER = {"model.layers.0.mlp.up_proj.weight": (128, HIDDEN), "model.norm.weight": (HIDDEN,)}
TIED, UNTIED = {**EMBEDDING, **LAYER}, {**EMBEDDING, **LAYER, **HEAD}
TABLE, LINEAR, NORM = VOCAB * HIDDEN, 128 * HIDDEN, HIDDEN  # elements


def write_weights(
    file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", **entries: Any
) -> None:
    """A safetensors file whose data is a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, size = end, ELEMENT_BYTES[dtype]
        for length in shape:
            size *= length
        end = begin + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header | entries).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def expert(folder: Path | str, **fields: Any) -> ExpertConfig:
    return ExpertConfig(expert_id="e", model_path=str(folder), **fields)


# Weights


@pytest.mark.parametrize("file_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(
    ("dtype", "element_bytes"), [("auto", 2), ("bfloat16", 2), ("float16", 2), ("float32", 4)]
)
def test_weights_have_the_size_of_the_dtype_that_vllm_makes_of_them(
    folder: Path, file_dtype: str, dtype: str, element_bytes: int
) -> None:
    write_weights(folder / "model.safetensors", TIED, file_dtype)
    predicted = memory.predict(expert(folder, dtype=dtype))
    assert predicted.known
    assert predicted.weights == element_bytes * (2 * TABLE + LINEAR + NORM)


def test_quantised_tensors_keep_their_size(folder: Path) -> None:
    write_weights(folder / "model.safetensors", {"q_proj.qweight": (64, 8)}, "I32")
    assert memory.predict(expert(folder, dtype="float32")).weights == 64 * 8 * 4


@pytest.mark.parametrize(
    ("shapes", "tie", "backend", "tables"),
    [
        (TIED, None, None, 2),
        (TIED, None, "stock", 2),
        (UNTIED, None, None, 3),
        (UNTIED, False, "capibara", 3),
        (UNTIED, None, "stock", 4),
        (UNTIED, True, None, 2),  # the file's lm_head is not loaded
    ],
)
def test_an_output_layer_stays_beside_its_packed_copy(
    folder: Path, shapes: dict[str, Any], tie: bool | None, backend: Any, tables: int
) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tie}))
    write_weights(folder / "model.safetensors", shapes)
    weights = memory.predict(expert(folder, linear_backend=backend)).weights
    assert weights == 2 * (tables * TABLE + LINEAR + NORM)


@pytest.mark.parametrize("shapes", [TIED, UNTIED])
def test_int8_halves_linear_layers_and_leaves_the_embedding(
    folder: Path, shapes: dict[str, Any]
) -> None:
    write_weights(folder / "model.safetensors", shapes)
    weights = memory.predict(expert(folder, quantization="capibara_int8")).weights
    scales = 8 * (VOCAB + 128)
    assert weights == 2 * (TABLE + NORM) + TABLE + LINEAR + scales


@pytest.mark.parametrize("shapes", [TIED, UNTIED])
def test_int4_has_its_output_layer_in_8_bits(folder: Path, shapes: dict[str, Any]) -> None:
    write_weights(folder / "model.safetensors", shapes)
    weights = memory.predict(expert(folder, quantization="capibara_int4")).weights
    head = TABLE + 8 * VOCAB
    assert weights == 2 * (TABLE + NORM) + head + LINEAR // 2 + 6 * (LINEAR // 64)


def test_int4_where_no_group_divides_the_columns(folder: Path) -> None:
    odd = {**EMBEDDING, "model.layers.0.mlp.up_proj.weight": (10, 40)}
    write_weights(folder / "model.safetensors", odd)
    int4, int8 = (
        memory.predict(expert(folder, quantization=f"capibara_int{bits}")).weights
        for bits in (4, 8)
    )
    assert int4 == int8


def test_parts_add_up_and_a_consolidated_duplicate_does_not_count(folder: Path) -> None:
    write_weights(folder / "model-00001-of-00002.safetensors", EMBEDDING)
    write_weights(folder / "consolidated.safetensors", {"tok_embeddings.weight": (VOCAB, HIDDEN)})
    assert not memory.predict(expert(folder)).known, "one part is still to come"
    write_weights(folder / "model-00002-of-00002.safetensors", LAYER)
    assert memory.predict(expert(folder)).weights == 2 * (2 * TABLE + LINEAR + NORM)


def test_a_consolidated_file_alone_counts(folder: Path) -> None:
    write_weights(folder / "consolidated.safetensors", {"tok_embeddings.weight": (VOCAB, HIDDEN)})
    assert memory.predict(expert(folder)).weights == 2 * TABLE


def test_only_headers_are_read(folder: Path) -> None:
    write_weights(folder / "model.safetensors", {"experts.weight": (2**20, 2**20)})
    assert memory.predict(expert(folder)).weights == 2 * 2**40


# KV cache


def predicted_kv(folder: Path, config: dict[str, Any], **fields: Any) -> int:
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", TIED)
    predicted = memory.predict(expert(folder, **fields))
    assert predicted.known
    return predicted.kv_cache


def by_rule(**changes: Any) -> int:
    shape = {"layers": LAYERS, "kv_heads": 2, "head_size": 16, "element_bytes": 2}
    return memory.kv_cache_bytes(**(shape | {"max_model_len": 100_000} | changes))


def test_kv_cache_has_the_size_that_the_engine_will_give_it(folder: Path) -> None:
    assert predicted_kv(folder, CONFIG) == by_rule() > 32 * MIB
    assert predicted_kv(folder, CONFIG, kv_cache_dtype="fp8") == by_rule(element_bytes=1)
    assert predicted_kv(folder, CONFIG, dtype="float32") == by_rule(element_bytes=4)
    assert predicted_kv(folder, CONFIG, max_model_len=50_000) == by_rule(max_model_len=50_000)
    blocks = {"num_gpu_blocks_override": 60_000, "block_size": 8}
    assert predicted_kv(folder, CONFIG, **blocks) == by_rule(tokens=480_000)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, {"kv_heads": 4}),
        ({"head_dim": 32}, {"head_size": 32}),
        ({"head_dim": 0}, {}),
        ({"model_max_length": 70_000}, {"max_model_len": 70_000}),
        (
            {
                "rope_scaling": {"type": "longrope"},
                "original_max_position_embeddings": 60_000,
            },
            {"max_model_len": 60_000},
        ),
    ],
)
def test_kv_cache_follows_config_json(
    folder: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert predicted_kv(folder, CONFIG | changes) == by_rule(**expected)


def test_kv_cache_of_a_model_with_a_nested_text_config(folder: Path) -> None:
    nested = {"model_type": "gemma3", "hidden_size": 9, "text_config": CONFIG}
    assert predicted_kv(folder, nested) == by_rule()


def test_gemma3_says_little_about_itself(folder: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}
    kv = predicted_kv(folder, {"model_type": "gemma3", "text_config": text}, max_model_len=8192)
    assert kv == by_rule(layers=34, kv_heads=4, head_size=256, max_model_len=8192)


@pytest.mark.parametrize(
    ("ranks", "per_rank"),
    [
        ({"tensor_parallel_size": 2}, {"kv_heads": 1}),
        ({"tensor_parallel_size": 4}, {"kv_heads": 1}),
        ({"pipeline_parallel_size": 2}, {"layers": 1}),
    ],
)
def test_kv_cache_of_all_ranks(
    folder: Path, ranks: dict[str, int], per_rank: dict[str, int]
) -> None:
    count = next(iter(ranks.values()))
    assert predicted_kv(folder, CONFIG, **ranks) == count * by_rule(**per_rank)
    assert predicted_kv(folder, CONFIG, kv_cache_memory_bytes=100, **ranks) == count * 100


# What cannot be known, and what is wrong


def test_a_prediction_adds_up(folder: Path) -> None:
    write_weights(folder / "model.safetensors", TIED)
    predicted = memory.predict(expert(folder), overhead=7)
    assert predicted.overhead == 7
    assert predicted.total == predicted.weights + predicted.kv_cache + 7


@pytest.mark.parametrize("where", ["/nowhere", "nobody/not-in-the-cache"])
def test_a_model_that_is_not_here_is_unknown(where: str) -> None:
    assert memory.predict(expert(where), overhead=7) == Prediction(0, 0, 7, known=False)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_model_without_one_of_its_files_is_unknown(folder: Path, missing: str) -> None:
    write_weights(folder / "model.safetensors", TIED)
    (folder / missing).unlink()
    assert not memory.predict(expert(folder)).known


def test_a_hub_name_is_looked_up_in_the_local_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    write_weights(folder / "model.safetensors", TIED)
    cached = {("owner/name", "config.json"): str(folder / "config.json")}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *wanted: cached.get(wanted)
    )
    assert memory.predict(expert("owner/name")) == memory.predict(expert(folder))
    assert not memory.predict(expert("owner/other")).known


def header(length: int, text: bytes) -> bytes:
    return length.to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "header would have 0 bytes"),
        (b"PK\x03\x04 is a zip file, not this", "header would have"),
        (header(2**62, b"{}"), "header would have"),
        (header(200_000_000, b"{}"), "header would have"),
        (header(4, b"{}"), "header would have 4 bytes"),
        (header(4, b"{x:}"), "Expecting"),
        (header(4, b'"\xff\xfe"'), "codec"),
        (header(2, b"[]"), "no object"),
        (header(10, b'{"a": 1}  '), "a: "),
        (header(16, b'{"a": {"b": {}}}'), "a.dtype: Field required"),
        (header(100_000, b'{"a":' * 20_000), "recursion"),
        (
            header(58, b'{"a": {"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}  '),
            "a.shape.0: ",
        ),
        (
            header(58, b'{"a": {"dtype":"F32","shape":[99],"data_offsets":[0,396]}}'),
            "ends after 66 of 462 bytes",
        ),
    ],
)
def test_malformed_weights_are_named(folder: Path, content: bytes, fault: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file") as error:
        memory.predict(expert(folder))
    assert str(file) in str(error.value)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "Expecting value"),
        ("[]", "no object"),
        ('{"text_config": 3}', "text_config is no object"),
        ('{"num_hidden_layers": "many"}', "num_hidden_layers: "),
        ('{"num_attention_heads": 0}', "num_attention_heads: "),
        ('{"model_type": ["a"], "hidden_size": -1}', "hidden_size: "),
    ],
)
def test_a_malformed_config_is_named(folder: Path, content: str, fault: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="not a model's configuration") as error:
        memory.predict(expert(folder))
    assert fault in str(error.value)


# Overhead


def prediction(weights: int = 1000, known: bool = True) -> Prediction:
    return Prediction(weights, 200, overhead=12345, known=known)


def test_overhead_starts_at_the_given_value_and_then_at_what_others_had() -> None:
    overhead = Overhead(initial=50, weight=0.5)
    assert overhead.expected("a") == 50
    overhead.learn("a", prediction(), 1200 + 80)
    assert (overhead.expected("a"), overhead.expected("b")) == (80, 80)


def test_overhead_moves_towards_new_measurements_model_by_model() -> None:
    overhead = Overhead(weight=0.25)
    overhead.learn("a", prediction(), 1200 + 80)
    overhead.learn("b", prediction(5000), 5200 + 160)
    overhead.learn("a", prediction(), 1200 + 40)
    assert overhead.expected("a") == 70
    assert overhead.expected("b") == 160
    assert overhead.expected("c") == 85  # 80, then a quarter towards 160, then towards 40


def test_less_than_the_weights_is_no_negative_overhead() -> None:
    overhead = Overhead()
    overhead.learn("a", prediction(), 900)
    assert overhead.expected("a") == 0


def test_an_unknown_model_teaches_nothing_about_the_others() -> None:
    overhead = Overhead(initial=50)
    overhead.learn("a", prediction(weights=0, known=False), 200 + 4000)
    assert (overhead.expected("a"), overhead.expected("b")) == (4000, 50)


# This machine's memory


# A parent with 64 MiB that it shares with its child, which has 64 MiB of its own. Not of zeros,
# which could be one shared page.
PARENT_AND_CHILD = """
import os, sys
shared = os.urandom(64 << 20)
if os.fork() == 0:
    own = os.urandom(64 << 20)
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is of Linux")
def test_pss_counts_children_and_a_shared_page_once() -> None:
    command = [sys.executable, "-S", "-c", PARENT_AND_CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        size = memory.pss(parent.pid)
        parent.communicate()
    assert 128 * MIB < size < 160 * MIB


def test_pss_of_a_process_that_is_gone_is_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    assert memory.pss(process.pid) == 0


def test_pss_skips_a_process_that_ends_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    class Family:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def children(self, recursive: bool) -> list[Family]:
            assert recursive
            return [Family(2), Family(3)]

        def memory_full_info(self) -> Any:
            if self.pid == 2:
                raise psutil.NoSuchProcess(self.pid)
            return SimpleNamespace(rss=1000, pss=100 * self.pid)

    monkeypatch.setattr(psutil, "Process", Family)
    assert memory.pss(1) == 400


class Machine:
    """A fake /proc and /sys beside a machine of 16 GiB, 10 of them available."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "sys/fs/cgroup").mkdir(parents=True)

    def belongs_to(self, lines: str) -> None:
        (self.root / "proc/self/cgroup").write_text(lines)

    def cgroup(self, path: str, **files: str | int) -> None:
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / f"memory.{name}").write_text(f"{content}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    whole = SimpleNamespace(total=16 * GIB, available=10 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: whole)
    return Machine(tmp_path)


def test_without_cgroups_the_machine_is_the_limit(machine: Machine) -> None:
    assert memory.limit_bytes(machine.root) == 16 * GIB
    assert memory.available_bytes(machine.root) == 10 * GIB


def test_cgroup_v2_the_narrowest_on_the_path_counts(machine: Machine) -> None:
    machine.belongs_to("0::/outer/inner\n")
    machine.cgroup("", current=9 * GIB)
    machine.cgroup("outer", max=8 * GIB, high="max", current=5 * GIB, stat="inactive_file 0")
    machine.cgroup(
        "outer/inner",
        max="max",
        high=6 * GIB,
        current=5 * GIB,
        stat=f"anon 17\nactive_file {2 * GIB}\ninactive_file {1 * GIB}",
    )
    machine.cgroup("outer/other", max=1 * GIB, high="max", current=1 * GIB)
    assert memory.limit_bytes(machine.root) == 6 * GIB
    assert memory.available_bytes(machine.root) == 2 * GIB  # 6 - (5 - 1), beside outer's 8 - 5
    machine.cgroup("outer", current=7 * GIB)
    assert memory.available_bytes(machine.root) == 1 * GIB


def test_cgroup_v1_limits_and_statistics(machine: Machine) -> None:
    machine.belongs_to("5:devices:/\n4:memory:/job\n2:cpu,cpuacct:/\n0::/\n")
    machine.cgroup("memory", limit_in_bytes=9223372036854771712, usage_in_bytes=9 * GIB)
    machine.cgroup(
        "memory/job",
        limit_in_bytes=4 * GIB,
        usage_in_bytes=3 * GIB,
        stat=f"inactive_file 0\ntotal_inactive_file {GIB}",
    )
    assert memory.limit_bytes(machine.root) == 4 * GIB
    assert memory.available_bytes(machine.root) == 2 * GIB


def test_a_container_that_sees_the_path_of_its_host(machine: Machine) -> None:
    machine.belongs_to("4:memory:/docker/0123456789ab\n")
    machine.cgroup("memory", limit_in_bytes=2 * GIB, usage_in_bytes=3 * GIB)
    assert memory.limit_bytes(machine.root) == 2 * GIB
    assert memory.available_bytes(machine.root) == 0


def test_a_budget_is_a_share_of_the_limit_or_what_is_asked_for_within_it(machine: Machine) -> None:
    machine.belongs_to("0::/job\n")
    machine.cgroup("job", max=4 * GIB)
    assert memory.budget_bytes(0.75, None, machine.root) == 3 * GIB
    assert memory.budget_bytes(0.75, 3.5, machine.root) == 3.5 * GIB
    assert memory.budget_bytes(0.75, 32, machine.root) == 4 * GIB


def test_this_machine_has_memory() -> None:
    assert 0 < memory.available_bytes() < memory.limit_bytes() <= psutil.virtual_memory().total
