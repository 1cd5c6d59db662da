# SPDX-License-Identifier: Apache-2.0
"""`capibara-axion info`, the call counts, and the examples in the reference's docstrings."""

from __future__ import annotations

import argparse
import doctest
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from operators import BFLOAT16, VARIANTS, Variant
from products import PRODUCTS

import capibara_axion as ax
from capibara_axion import _core, info, reference, reference_attention

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = {
    "rms_norm",
    "fused_add_rms_norm",
    "layer_norm",
    "softmax",
    "rope",
    "silu_and_mul",
    "gelu_and_mul",
    "gelu_tanh_and_mul",
    "gemm_f32",
    "gemm_bf16",
    "gemm_f16",
    "gemm_int8",
    "gemm_int4",
    "attention",
    "kv_cache_append",
    "fp8_decode",
    "fp8_encode",
}


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(argparse.Namespace(json=True)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == info.collect()
    assert shown["machine"]["architecture"] in ("x86_64", "aarch64", "other")
    assert shown["machine"]["logical_cpus"] >= 1
    isas = {isa["name"]: isa for isa in shown["isa"]["built"]}
    chosen = shown["isa"]["chosen"]
    assert isas[chosen]["runs_here"]
    assert set(isas[chosen]["required"]) <= set(shown["machine"]["features"])
    assert isas["scalar"]["runs_here"]
    assert {op["name"] for op in shown["operators"]} == OPERATORS
    for op in shown["operators"]:
        assert op["chosen"] in op["built"]
        assert set(op["built"]) <= set(isas)
    gemm = shown["gemm"]
    assert gemm["choice"] in ("auto", "native", "acl")
    assert gemm["acl"] or not gemm["crossovers"]
    for row in gemm["crossovers"]:
        assert f"gemm_{row['type']}" in OPERATORS - {"gemm_int8", "gemm_int4"}
        assert row["backend"] in ("native", "acl")
        assert row["measured"]
    assert shown["threads"]["per_call"] >= 1
    assert shown["versions"]["numpy"] == np.__version__
    assert shown["versions"]["capibara_axion"] == importlib.metadata.version("capibara-axion")


def test_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(argparse.Namespace(json=False)) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text, "colours in what is no terminal"
    machine = info.collect()["machine"]
    for word in (*OPERATORS, *machine["features"], machine["architecture"], _core.__version__):
        assert word in text


def test_text_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    info._print_rich(info._sections(info.collect()))
    text = capsys.readouterr().out
    assert all(op in text for op in OPERATORS)


def test_what_forced_the_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPIBARA_AXION_ISA", raising=False)
    assert info.collect()["isa"]["forced_by"] is None
    monkeypatch.setenv("CAPIBARA_AXION_ISA", _core.chosen_isa())
    assert info.collect()["isa"]["forced_by"] == "CAPIBARA_AXION_ISA"


def test_what_runs_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPIBARA_AXION_GEMM", raising=False)
    assert info.collect()["gemm"]["set_by"] is None
    monkeypatch.setenv("CAPIBARA_AXION_GEMM", "native")
    assert info.collect()["gemm"]["set_by"] == "CAPIBARA_AXION_GEMM"

    program = "from capibara_axion import info; print(info.collect()['gemm']['choice'])"
    for choice in ("native", "acl", "eigen"):
        monkeypatch.setenv("CAPIBARA_AXION_GEMM", choice)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        if choice == "native" or (choice == "acl" and info.collect()["gemm"]["acl"]):
            assert done.stdout.strip() == choice, done.stderr
        else:
            assert done.returncode == 1
            assert "CAPIBARA_AXION_GEMM: " in done.stderr
            assert f"'{choice}'" in done.stderr


def test_the_table_of_matrix_products() -> None:
    without = {"choice": "auto", "set_by": None, "acl": None, "crossovers": []}
    (section,) = info._gemm_sections(without)
    assert section.rows == [
        ("run by", "auto"),
        ("Arm Compute Library", "not built in: all products are native"),
    ]
    row = {
        "type": "bf16",
        "least_m": 8,
        "most_m": None,
        "least_weights": 65536,
        "backend": "acl",
        "measured": "why",
    }
    entry = {
        "choice": "acl",
        "set_by": "CAPIBARA_AXION_GEMM",
        "acl": "arm_compute_version=v20.08 Build options: {}",
        "crossovers": [row],
    }
    section, table = info._gemm_sections(entry)
    assert section.rows == [
        ("run by", "acl, set by CAPIBARA_AXION_GEMM"),
        ("Arm Compute Library", "v20.08"),
    ]
    assert table.rows == [("bf16", "8 to any", "65536", "acl", "why")]


def test_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def plugin(**variables: str) -> dict:
        for name in ("PLUGIN", "DISABLE"):
            monkeypatch.delenv(f"CAPIBARA_AXION_{name}", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(f"CAPIBARA_AXION_{name}", value)
        return info.collect()["vllm_plugin"]

    monkeypatch.setattr(info, "_version_of", lambda *names: "0.32.0")
    assert plugin()["active"]
    assert "rope" in plugin()["operators"]
    partly = plugin(DISABLE="rope")
    assert partly["active"]
    assert "rope" not in partly["operators"]
    off = plugin(PLUGIN="0")
    assert not off["active"]
    assert off["operators"] == []
    assert "CAPIBARA_AXION_PLUGIN" in plugin(PLUGIN="perhaps")["reason"]
    monkeypatch.setattr(info, "_version_of", lambda *names: None)
    assert plugin()["reason"] == "vLLM is not installed"


def test_neither_torch_nor_vllm_is_imported() -> None:
    code = (
        "import sys; from capibara_axion import info; info.collect(); "
        "print({'torch', 'vllm', 'aiohttp', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_layers_and_light_imports() -> None:
    check = [sys.executable, ROOT / "scripts" / "check_layers.py"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_call_is_counted(rng: np.random.Generator, variant: Variant) -> None:
    info.reset_call_counts()
    assert set(info.call_counts().values()) == {0}
    variant.run(variant.make(rng, 2, 8, BFLOAT16))
    assert info.call_counts() == {op: int(op == variant.op) for op in OPERATORS}


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_every_product_is_counted(rng: np.random.Generator, product: Variant) -> None:
    """By the type of its products."""
    info.reset_call_counts()
    product.run(product.make(rng, 2, 8, BFLOAT16))
    of = product.options if product.op == "packed_linear" else "bf16"
    assert info.call_counts() == {op: int(op == f"gemm_{of}") for op in OPERATORS}


def test_every_matrix_of_a_batch_is_counted() -> None:
    info.reset_call_counts()
    ax.matmul(np.ones((3, 2, 4, 5), np.float32), np.ones((2, 5, 6), np.float32))
    assert info.call_counts()["gemm_f32"] == 6
    # With the same second operand they are one product of more rows.
    ax.matmul(np.ones((3, 2, 4, 5), np.float32), np.ones((5, 6), np.float32))
    assert info.call_counts()["gemm_f32"] == 7


def test_examples_of_the_reference() -> None:
    for module in (reference, reference_attention):
        failed, tried = doctest.testmod(module)
        assert failed == 0
        assert tried > 0


def test_the_reference_rounds_once() -> None:
    """To bfloat16 as well, where going by way of float32 would round 1 + 2^-8 + 2^-30 down."""
    eps = 2.0**-7  # of bfloat16
    exact = np.array([1 + eps / 2 + 2**-30, 1 + eps / 2, 1 + eps / 2 - 2**-30, 1 + 1.5 * eps])
    expected = np.array([1 + eps, 1, 1, 1 + 2 * eps])
    for sign in (1, -1):
        given = reference._rounded(sign * exact, BFLOAT16)
        assert given.astype(np.float64).tolist() == (sign * expected).tolist()
    special = np.array([np.inf, -np.inf, 1e39, 2.0**-134, 0.0])
    given = reference._rounded(special, BFLOAT16).astype(np.float64)
    assert given.tolist() == [np.inf, -np.inf, np.inf, 0.0, 0.0]
    assert np.isnan(reference._rounded(np.array([np.nan]), BFLOAT16).astype(np.float64)).all()
