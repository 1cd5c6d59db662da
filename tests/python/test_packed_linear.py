# SPDX-License-Identifier: Apache-2.0
"""PackedLinear as an object: what it tells, unpacks, writes and reads."""

from __future__ import annotations

import copy
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from operators import BFLOAT16, DTYPES, FLOAT32, Array, normal
from products import TYPES

import capibara_axion as ax
from capibara_axion import _core, reference

each_type = pytest.mark.parametrize("packed", TYPES)
SHAPES = ((1, 1), (37, 75), (16, 64), (3, 0), (0, 3), (130, 9))


def integers_of(values: Array) -> Array:
    """The very bits, for comparison."""
    return values.view({1: np.int8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize])


def same_bits(a: Array, b: Array) -> bool:
    return (
        a.dtype == b.dtype and a.shape == b.shape and bool((integers_of(a) == integers_of(b)).all())
    )


def same_layer(a: ax.PackedLinear, b: ax.PackedLinear) -> bool:
    (values, scales), (others, other_scales) = a.unpack(), b.unpack()
    if (scales is None) != (other_scales is None) or (a.bias is None) != (b.bias is None):
        return False
    return (
        repr(a) == repr(b)
        and a.nbytes == b.nbytes
        and same_bits(values, others)
        and (scales is None or same_bits(scales, other_scales))
        and (a.bias is None or same_bits(a.bias, b.bias))
    )


def test_attributes(rng: np.random.Generator) -> None:
    weight, bias = normal(rng, (6, 10), BFLOAT16), normal(rng, (6,), BFLOAT16)
    layer = ax.PackedLinear(weight, bias=bias)
    assert (layer.in_features, layer.out_features, layer.dtype) == (10, 6, "bf16")
    assert layer.nbytes == _core.packed_nbytes(1, 6, 10) + 24
    assert layer.bias.dtype == np.float32
    assert (layer.bias == bias.astype(np.float32)).all()
    assert repr(layer) == "PackedLinear(in_features=10, out_features=6, dtype='bf16', bias=True)"
    without = ax.PackedLinear(weight, "int8")
    assert without.bias is None
    assert repr(without) == "PackedLinear(in_features=10, out_features=6, dtype='int8', bias=False)"
    for name, of in (
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("float16", "f16"),
        ("int8", "int8"),
    ):
        assert ax.PackedLinear(weight, name).dtype == of
    for dtype, of in zip(DTYPES, ("f32", "f16", "bf16"), strict=True):
        assert ax.PackedLinear(weight.astype(dtype)).dtype == of


def test_nothing_of_the_arguments_is_kept(rng: np.random.Generator) -> None:
    weight, bias, x = normal(rng, (6, 10), FLOAT32), normal(rng, (6,), FLOAT32), np.ones((1, 10))
    layer = ax.PackedLinear(weight, bias=bias)
    x = x.astype(np.float32)
    before = layer(x)
    weight[...], bias[...] = 0, 0
    assert same_bits(layer(x), before)


@each_type
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_unpack(rng: np.random.Generator, packed: str, dtype: np.dtype) -> None:
    for shape in SHAPES:
        weight = normal(rng, shape, dtype)
        if weight.size > 3:
            weight[0] = 0
        values, scales = ax.PackedLinear(weight, packed).unpack()
        if packed == "int8":
            integers, expected = reference.quantized(weight)
            assert values.dtype == np.int8
            assert (values == integers).all()
            assert same_bits(scales, expected[:, 0])
        else:
            assert scales is None
            to = np.dtype(getattr(ml_dtypes, TYPES[packed], None) or TYPES[packed])
            expected = reference._rounded(weight.astype(np.float64), to)
            assert same_bits(values, expected)


@each_type
@pytest.mark.parametrize("with_bias", [False, True])
def test_copies(rng: np.random.Generator, packed: str, with_bias: bool) -> None:
    weight, x = normal(rng, (37, 75), FLOAT32), normal(rng, (3, 75), FLOAT32)
    layer = ax.PackedLinear(weight, packed, weight[:, 0] if with_bias else None)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other is not layer
        assert same_layer(other, layer)
        assert same_bits(other(x), layer(x))


class TestFiles:
    @pytest.fixture(autouse=True)
    def _needs_safetensors(self) -> None:
        pytest.importorskip("safetensors", reason="the package that writes and reads the files")

    @each_type
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_round_trip(
        self, rng: np.random.Generator, tmp_path: Path, packed: str, with_bias: bool
    ) -> None:
        for shape in SHAPES:
            weight, x = normal(rng, shape, FLOAT32), normal(rng, (3, shape[1]), FLOAT32)
            bias = normal(rng, shape[:1], FLOAT32) if with_bias else None
            layer = ax.PackedLinear(weight, packed, bias)
            layer.save(tmp_path / "layer.safetensors")
            loaded = ax.PackedLinear.load(str(tmp_path / "layer.safetensors"))
            assert same_layer(loaded, layer)
            assert same_bits(loaded(x), layer(x))

    def test_others_can_read_it(self, rng: np.random.Generator, tmp_path: Path) -> None:
        from safetensors.numpy import load_file

        weight = normal(rng, (37, 75), FLOAT32)
        layer = ax.PackedLinear(weight, "int8", weight[:, 0])
        layer.save(tmp_path / "layer")
        tensors = load_file(tmp_path / "layer")
        assert tensors.keys() == {"weight", "scales", "bias"}
        assert (tensors["weight"] == layer.unpack()[0]).all()
        assert same_bits(tensors["scales"], layer.unpack()[1])
        rebuilt = tensors["weight"] * tensors["scales"][:, None]
        assert np.abs(rebuilt - weight).max() <= tensors["scales"].max() * 0.501

    def test_it_reads_what_others_wrote(self, rng: np.random.Generator, tmp_path: Path) -> None:
        weight, bias = normal(rng, (5, 8), BFLOAT16), normal(rng, (5,), BFLOAT16)
        tensors = {
            "weight": ("BF16", weight.view(np.uint16)),
            "bias": ("BF16", bias.view(np.uint16)),
        }
        loaded = ax.PackedLinear.load(self.write(tmp_path, tensors))
        assert same_layer(loaded, ax.PackedLinear(weight, bias=bias))
        tensors["bias"] = ("F16", bias.astype(np.float16))
        loaded = ax.PackedLinear.load(self.write(tmp_path, tensors))
        assert same_bits(loaded.bias, bias.astype(np.float16).astype(np.float32))

    @staticmethod
    def write(folder: Path, tensors: dict[str, tuple[str, Array]]) -> Path:
        """A safetensors file of any types: https://github.com/huggingface/safetensors#format"""
        header: dict[str, Any] = {}
        data = b""
        for name, (dtype, array) in tensors.items():
            end = len(data) + array.nbytes
            header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), end]}
            data += array.tobytes()
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = folder / "written.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    def test_damaged_files(self, rng: np.random.Generator, tmp_path: Path) -> None:
        path = tmp_path / "layer.safetensors"
        ax.PackedLinear(normal(rng, (5, 8), FLOAT32)).save(path)
        data = path.read_bytes()
        for size in (0, 4, 20, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:size])
            with pytest.raises(
                ValueError, match=r"layer\.safetensors: expected a safetensors file"
            ):
                ax.PackedLinear.load(path)
        path.write_bytes(b"no tensors at all, " * 100)
        with pytest.raises(ValueError, match=r"layer\.safetensors: expected a safetensors file"):
            ax.PackedLinear.load(path)
        with pytest.raises(FileNotFoundError):
            ax.PackedLinear.load(tmp_path / "missing")

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({}, "expected tensors weight, scales and bias, got none"),
            ({"w": ("F32", (2, 3))}, "expected tensors weight, scales and bias, got w"),
            (
                {"weight": ("F32", (2, 3)), "more": ("F32", (1,))},
                "expected tensors weight, .* more",
            ),
            ({"weight": ("F32", (6,))}, r"weight: expected shape \[out_features, in_features\]"),
            ({"weight": ("F64", (2, 3))}, "weight: expected one of F32, BF16, F16, I8, got F64"),
            ({"weight": ("I8", (2, 3))}, "scales: expected scales for a weight of I8, got none"),
            (
                {"weight": ("F32", (2, 3)), "scales": ("F32", (2,))},
                "scales: expected no scales but for I8, got some",
            ),
            (
                {"weight": ("I8", (2, 3)), "scales": ("F32", (3,))},
                r"scales: expected shape \[2\], got \[3\]",
            ),
            (
                {"weight": ("I8", (2, 3)), "scales": ("F16", (2,))},
                "scales: expected float32, got float16",
            ),
            ({"weight": ("F32", (2, 3)), "bias": ("F32", (3,))}, r"bias: expected shape \[2\]"),
            ({"weight": ("F32", (2, 3)), "bias": ("I8", (2,))}, "bias: expected F32, BF16 or F16"),
            (
                {"weight": ("I8", (1, 65537)), "scales": ("F32", (1,))},
                "weight: expected at most 65536 columns",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_other_files(
        self, tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], message: str
    ) -> None:
        sizes = {"F64": 8, "F32": 4, "F16": 2, "I8": 1}
        arrays = {
            name: (dtype, np.zeros(shape, f"V{sizes[dtype]}"))
            for name, (dtype, shape) in tensors.items()
        }
        path = self.write(tmp_path, arrays)
        with pytest.raises(ValueError, match=rf"written\.safetensors: {message}"):
            ax.PackedLinear.load(path)

    def test_integers_beyond_the_scheme(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            {
                "weight": ("I8", np.array([[-128, 3]], np.int8)),
                "scales": ("F32", np.ones(1, np.float32)),
            },
        )
        with pytest.raises(
            ValueError, match="weight: expected integers from -127 to 127, got -128"
        ):
            ax.PackedLinear.load(path)


def test_without_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    layer = ax.PackedLinear(np.ones((2, 3), np.float32))
    for call in (lambda: layer.save(tmp_path / "x"), lambda: ax.PackedLinear.load(tmp_path / "x")):
        with pytest.raises(ImportError, match="need the package safetensors"):
            call()


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the values as an array."""
    layer = ax.PackedLinear(np.full((2, 3), 1.00390625, np.float32), "bf16")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert layer(np.ones((1, 3), np.float32)).tolist() == [[3, 3]]
    with pytest.raises(ImportError, match="package ml_dtypes is needed"):
        layer.unpack()


def test_memory_is_freed() -> None:
    """Packed memory is the native module's own, which Python's garbage collector frees."""
    weight = np.ones((64, 64), np.float32)
    arrays = [_core.aligned_empty(1 << 21) for _ in range(3)]
    assert all(array.ctypes.data % (1 << 21) == 0 for array in arrays)
    assert all(_core.aligned_empty(size).ctypes.data % 64 == 0 for size in (0, 1, 63, 64, 100))
    import resource

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    big = np.ones((1024, 2048), np.float32)
    ax.PackedLinear(big)
    before = peak()
    for _ in range(20):
        ax.PackedLinear(big)
        ax.PackedLinear(weight)
    assert peak() - before < 40 * 1024


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, numpy as np; from capibara_axion import PackedLinear; "
        "x = np.ones((2, 3), np.float32); PackedLinear(x, 'int8', x[:, 0])(x); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
