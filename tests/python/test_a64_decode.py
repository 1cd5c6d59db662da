# SPDX-License-Identifier: Apache-2.0
"""What the instruction counter of benchmarks/aarch64 takes each kind of instruction for."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = Path(__file__).parents[2] / "benchmarks/aarch64/a64_decode.h"

# Assembly, its encoding (by llvm-mc 19), and: simd, loads, stores, bytes loaded, bytes stored.
INSTRUCTIONS = [
    ("add x0, x1, x2", 0x8B020020, (0, 0, 0, 0, 0)),
    ("b.ne #8", 0x54000041, (0, 0, 0, 0, 0)),
    ("fmla v0.4s, v1.4s, v2.4s", 0x4E22CC20, (1, 0, 0, 0, 0)),
    ("frecps v0.4s, v1.4s, v2.4s", 0x4E22FC20, (1, 0, 0, 0, 0)),
    ("fadd s0, s1, s2", 0x1E222820, (1, 0, 0, 0, 0)),
    ("mov v0.16b, v1.16b", 0x4EA11C20, (1, 0, 0, 0, 0)),
    ("fmov v0.4s, #1.0", 0x4F03F600, (1, 0, 0, 0, 0)),
    ("bfcvtn v0.4h, v1.4s", 0x0EA16820, (1, 0, 0, 0, 0)),
    ("bfmmla v0.4s, v1.8h, v2.8h", 0x6E42EC20, (1, 0, 0, 0, 0)),
    ("smmla v0.4s, v1.16b, v2.16b", 0x4E82A420, (1, 0, 0, 0, 0)),
    ("ldr x0, [x1]", 0xF9400020, (0, 1, 0, 8, 0)),
    ("ldr w0, [x1, #4]!", 0xB8404C20, (0, 1, 0, 4, 0)),
    ("ldrb w0, [x1, x2]", 0x38626820, (0, 1, 0, 1, 0)),
    ("ldrsw x0, [x1]", 0xB9800020, (0, 1, 0, 4, 0)),
    ("ldrsh w0, [x1]", 0x79C00020, (0, 1, 0, 2, 0)),
    ("ldur x0, [x1, #-8]", 0xF85F8020, (0, 1, 0, 8, 0)),
    ("str w0, [x1], #4", 0xB8004420, (0, 0, 1, 0, 4)),
    ("strh w0, [x1]", 0x79000020, (0, 0, 1, 0, 2)),
    ("ldr q0, [x1]", 0x3DC00020, (0, 1, 0, 16, 0)),
    ("ldr d0, [x1, #8]", 0xFD400420, (0, 1, 0, 8, 0)),
    ("ldr h0, [x1]", 0x7D400020, (0, 1, 0, 2, 0)),
    ("str q0, [x1, x2]", 0x3CA26820, (0, 0, 1, 0, 16)),
    ("stur s0, [x1, #-4]", 0xBC1FC020, (0, 0, 1, 0, 4)),
    ("ldp x0, x1, [x2]", 0xA9400440, (0, 1, 0, 16, 0)),
    ("ldp w0, w1, [x2]", 0x29400440, (0, 1, 0, 8, 0)),
    ("ldpsw x0, x1, [x2]", 0x69400440, (0, 1, 0, 8, 0)),
    ("stp x0, x1, [sp, #-16]!", 0xA9BF07E0, (0, 0, 1, 0, 16)),
    ("ldp q0, q1, [x2]", 0xAD400440, (0, 1, 0, 32, 0)),
    ("ldp d0, d1, [x2], #16", 0x6CC10440, (0, 1, 0, 16, 0)),
    ("stp q0, q1, [x2]", 0xAD000440, (0, 0, 1, 0, 32)),
    ("ldnp q0, q1, [x2]", 0xAC400440, (0, 1, 0, 32, 0)),
    ("ldr x0, #8", 0x58000040, (0, 1, 0, 8, 0)),
    ("ldr q0, #16", 0x9C000080, (0, 1, 0, 16, 0)),
    ("prfm pldl1keep, [x0]", 0xF9800000, (0, 0, 0, 0, 0)),
    ("prfm pldl1keep, #8", 0xD8000040, (0, 0, 0, 0, 0)),
    ("ld1 {v0.8h, v1.8h, v2.8h, v3.8h}, [x0], #64", 0x4CDF2400, (0, 1, 0, 64, 0)),
    ("ld1 {v0.4s, v1.4s}, [x0]", 0x4C40A800, (0, 1, 0, 32, 0)),
    ("ld1 {v0.4h}, [x0]", 0x0C407400, (0, 1, 0, 8, 0)),
    ("ld2 {v0.8h, v1.8h}, [x0]", 0x4C408400, (0, 1, 0, 32, 0)),
    ("ld4 {v0.16b, v1.16b, v2.16b, v3.16b}, [x0]", 0x4C400000, (0, 1, 0, 64, 0)),
    ("st1 {v0.8h, v1.8h, v2.8h, v3.8h}, [x0], #64", 0x4C9F2400, (0, 0, 1, 0, 64)),
    ("st3 {v0.4s, v1.4s, v2.4s}, [x0]", 0x4C004800, (0, 0, 1, 0, 48)),
    ("ld1 {v0.s}[1], [x0]", 0x0D409000, (0, 1, 0, 4, 0)),
    ("ld1 {v0.d}[1], [x0]", 0x4D408400, (0, 1, 0, 8, 0)),
    ("ld1 {v0.b}[3], [x0]", 0x0D400C00, (0, 1, 0, 1, 0)),
    ("st1 {v0.h}[3], [x0]", 0x0D005800, (0, 0, 1, 0, 2)),
    ("ld2 {v0.s, v1.s}[1], [x0]", 0x0D609000, (0, 1, 0, 8, 0)),
    ("ld1r {v0.4s}, [x0]", 0x4D40C800, (0, 1, 0, 4, 0)),
    ("ld1r {v0.2d}, [x0]", 0x4D40CC00, (0, 1, 0, 8, 0)),
    ("ld2r {v0.8h, v1.8h}, [x0]", 0x4D60C400, (0, 1, 0, 4, 0)),
    ("ldxr x0, [x1]", 0xC85F7C20, (0, 1, 0, 8, 0)),
    ("stxr w0, x1, [x2]", 0xC8007C41, (0, 0, 1, 0, 8)),
    ("ldxp x0, x1, [x2]", 0xC87F0440, (0, 1, 0, 16, 0)),
    ("ldar w0, [x1]", 0x88DFFC20, (0, 1, 0, 4, 0)),
    ("stlr w0, [x1]", 0x889FFC20, (0, 0, 1, 0, 4)),
    ("ldapr w0, [x1]", 0xB8BFC020, (0, 1, 0, 4, 0)),
    ("ldapur x0, [x1]", 0xD9400020, (0, 1, 0, 8, 0)),
    ("stlur w0, [x1]", 0x99000020, (0, 0, 1, 0, 4)),
    ("ldadd w0, w1, [x2]", 0xB8200041, (0, 1, 1, 4, 4)),
    ("swp x0, x1, [x2]", 0xF8208041, (0, 1, 1, 8, 8)),
    ("cas x0, x1, [x2]", 0xC8A07C41, (0, 1, 1, 8, 8)),
    ("casp x0, x1, x2, x3, [x4]", 0x48207C82, (0, 1, 1, 16, 16)),
    ("dc zva, x0", 0xD50B7420, (0, 0, 1, 0, 64)),
    ("svc #0", 0xD4000001, (0, 0, 0, 0, 0)),
]


class Counts(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint)
        for name in ("simd", "loads", "stores", "bytes_loaded", "bytes_stored")
    ]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(
            "a C compiler (cc) is needed to compile a64_decode.h; apt-get install gcc has one"
        )
    folder = tmp_path_factory.mktemp("a64")
    source, library = folder / "decode.c", folder / "decode.so"
    source.write_text(
        f'#include "{HEADER}"\nA64Counts decode(uint32_t word) {{ return a64_decode(word, 64); }}\n'
    )
    command = [compiler, "-std=c11", "-O1", "-shared", "-fPIC", "-o", library, source]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.decode.restype = Counts
    loaded.decode.argtypes = (ctypes.c_uint32,)
    return loaded


@pytest.mark.parametrize(("assembly", "word", "expected"), INSTRUCTIONS)
def test_instruction(
    decoder: ctypes.CDLL, assembly: str, word: int, expected: tuple[int, ...]
) -> None:
    counts = decoder.decode(word)
    assert tuple(getattr(counts, name) for name, _ in Counts._fields_) == expected, assembly
