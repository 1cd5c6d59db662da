# SPDX-License-Identifier: Apache-2.0
"""benchmarks/aarch64 finds the loops that are marked, whatever shape the compiler gave them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "aarch64"))
import assembly
import compiled
import llvm_mca

sys.path.pop(0)


def mark(name: str, value: int) -> str:
    return f"\t//DEBUG_VALUE: operator()<x::Whole<4UL> >:capibara_loop_{name} <- {value}\n"


def function(body: str, name: str = "_ZN8capibara4neon3expEv") -> str:
    return f"\t.type\t{name},@function\n{name}:\n.Lfunc_begin0:\n{body}.Lfunc_end0:\n"


ONE_BLOCK = function(
    "\tcbz\tx0, .LBB0_2\n"
    ".LBB0_1:                                // =>This Inner Loop Header: Depth=1\n"
    + mark("exp", 42)
    + "\t.loc\t1 8 3\n"
    ".Ltmp3:\n"
    "\tldp\tq0, q1, [x1], #64              // 32-byte Folded Reload\n"
    "\tadd\tx2, x2, #16\n"
    "\tcmp\tx2, x0\n"
    "\tb.ls\t.LBB0_1\n"
    ".LBB0_2:\n"
    "\tret\n"
)


def test_one_block() -> None:
    (loop,) = assembly.marked_loops(ONE_BLOCK)
    assert loop.mark == assembly.Mark("exp", "bf16", 4, 0)
    assert loop.code == (
        "ldp q0, q1, [x1], #64",
        "add x2, x2, #16",
        "cmp x2, x0",
        "b.ls .LBB0_1",
    )
    assert (loop.branches, loop.off_path, loop.calls) == (0, 0, 0)
    assert loop.steps() == {16, 64}


def test_mark_is_decoded() -> None:
    assert assembly.Mark.decode("scale", 20081) == assembly.Mark("scale", "f16", 8, 2)
    assert assembly.Mark.decode("mmla", 80163) == assembly.Mark("mmla", "int8", 16, 8)


def test_rotated_loop_is_entered_in_its_middle() -> None:
    text = function(
        "\tb\t.LBB0_2\n"
        ".LBB0_1:\n" + mark("max", 40) + "\tfmax\tv0.4s, v0.4s, v1.4s\n"
        ".LBB0_2:\n\tcmp\tx2, x0\n\tb.ls\t.LBB0_1\n\tret\n"
    )
    (loop,) = assembly.marked_loops(text)
    assert loop.code == ("cmp x2, x0", "b.ls .LBB0_1", "fmax v0.4s, v0.4s, v1.4s")
    assert loop.branches == 1  # its only conditional branch is not at the end of the way


def test_only_the_innermost_loop_counts() -> None:
    # What a row's remainder marks stands in the loop over rows, which has another one inside.
    text = function(
        ".LBB0_1:\n\tmov\tx2, #0\n"
        ".LBB0_2:\n" + mark("exp", 40) + "\tadd\tx2, x2, #16\n\tcbnz\tx2, .LBB0_2\n"
        "// %bb.3:\n" + mark("exp", 20) + "\tsub\tx5, x5, #1\n\tcbnz\tx5, .LBB0_1\n\tret\n"
    )
    (loop,) = assembly.marked_loops(text)
    assert loop.mark.work == 4
    assert loop.code == ("add x2, x2, #16", "cbnz x2, .LBB0_2")


def test_branch_inside_is_not_taken() -> None:
    text = function(
        ".LBB0_1:\n" + mark("exp", 40) + "\tadd\tx2, x2, #16\n\ttbnz\tw3, #0, .LBB0_3\n"
        "// %bb.2:\n\tfadd\tv0.4s, v0.4s, v1.4s\n"
        ".LBB0_4:\n\tcmp\tx2, x0\n\tb.ls\t.LBB0_1\n\tret\n"
        ".LBB0_3:\n\tbl\tslow\n\tb\t.LBB0_4\n"
    )
    (loop,) = assembly.marked_loops(text)
    assert loop.code[2] == "fadd v0.4s, v0.4s, v1.4s"
    assert (loop.branches, loop.off_path, loop.calls) == (1, 2, 0)
    assert "branches inside" in " ".join(compiled._remarks(loop))


def test_loop_behind_a_computed_jump() -> None:
    text = function(
        "\tbr\tx9\n.LBB0_1:\n\tmov\tx2, #0\n"
        ".LBB0_2:\n" + mark("exp", 40) + "\tadd\tx2, x2, #16\n\tcbnz\tx2, .LBB0_2\n\tret\n"
    )
    assert [loop.mark.name for loop in assembly.marked_loops(text)] == ["exp"]


def test_what_is_no_marked_loop() -> None:
    outside = function(mark("exp", 40) + "\tnop\n.LBB0_1:\n\tcbnz\tx0, .LBB0_1\n\tret\n")
    part = function(".LBB0_1:\n" + mark("exp", 0) + "\tcbnz\tx0, .LBB0_1\n\tret\n")
    data = "_ZN8capibara4neon3expEv:\n" + mark("exp", 40) + ".LBB0_1:\n\tcbnz\tx0, .LBB0_1\n"
    for text in (outside, part, data):
        assert list(assembly.marked_loops(text)) == []


def test_two_marks_in_one_loop() -> None:
    both = mark("exp", 40) + mark("max", 40)
    with pytest.raises(ValueError, match="several marks"):
        list(assembly.marked_loops(function(f".LBB0_1:\n{both}\tcbnz\tx0, .LBB0_1\n")))


def test_instructions_are_those_of_the_build_without_debug_information() -> None:
    shipped = ONE_BLOCK.replace(mark("exp", 42), "").replace("q0, q1", "q4, q5")
    (loop,) = assembly.marked_loops(ONE_BLOCK, shipped)
    assert loop.code[0] == "ldp q4, q5, [x1], #64"
    with pytest.raises(ValueError, match="changes the loop"):
        list(assembly.marked_loops(ONE_BLOCK, shipped.replace("ldp", "ldnp")))
    with pytest.raises(ValueError, match="number of loops"):
        list(assembly.marked_loops(ONE_BLOCK, shipped.replace("b.ls\t.LBB0_1", "nop")))


@pytest.mark.parametrize(
    ("symbol", "isa", "expected"),
    [
        ("_ZN8capibara4neon8rms_normERKNS_8NormArgsEll", "neon", "rms_norm"),
        ("_ZN8capibara9neon_bf167softmaxERKNS_11SoftmaxArgsEllPf", "neon_bf16", "softmax"),
        ("_ZN8capibara8dispatchIZNS_4neon4ropeERKNS_8RopeArgsEllE3$_0EEDc", "neon", "rope"),
        ("_ZN8capibara9neon_bf1612_GLOBAL__N_14tileILi8EEEvPf", "neon_bf16", None),
        ("main", "neon", None),
    ],
)
def test_operator(symbol: str, isa: str, expected: str | None) -> None:
    assert compiled.operator(symbol, isa) == expected


def test_a_missing_or_unknown_loop_is_an_error() -> None:
    table = {("f", "exp"): {"bf16": (0,)}, ("f", "max"): {"bf16": (0,)}}
    loops = [
        compiled.MarkedLoop("f", name, "bf16", 0, "neon", 4, ((),), ()) for name in ("exp", "sum")
    ]
    with pytest.raises(compiled.Unexpected) as error:
        compiled._check(loops, ["neon"], table, table)
    assert str(error.value).splitlines() == [
        "not found: f.max bf16 variant 0 neon",
        "marked, but not in the table of loops: f.sum bf16 variant 0",
    ]


def test_tiles_are_expected_for_their_instruction_sets_only() -> None:
    table = {("gemm", "mmla"): {"int8": (8,)}, ("f", "exp"): {"bf16": (0,)}}
    tiles = {("gemm", "mmla"): {"int8": ("neon_bf16", "neon_dotprod")}}
    loops = [
        compiled.MarkedLoop("gemm", "mmla", "int8", 8, "neon_bf16", 16, ((),), ()),
        compiled.MarkedLoop("f", "exp", "bf16", 0, "neon", 4, ((),), ()),
    ]
    with pytest.raises(compiled.Unexpected) as error:
        compiled._check(loops, ["neon"], table, table, tiles)
    assert str(error.value) == "not found: gemm.mmla int8 variant 8 neon_dotprod"


def test_sources(tmp_path: Path) -> None:
    commands = {
        "kernels/softmax/softmax_hwy.cc": "c++ -DCAPIBARA_ISA=neon -c",
        "kernels/gemm/tile_int8_neon_dotprod.cc": "c++ -c",
        "kernels/gemm/gemm_table.cc": "c++ -c",
    }
    entries = []
    for name, command in commands.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("void softmax(int x) {}\n" if "softmax" in name else "")
        entries.append({"directory": str(tmp_path), "file": name, "command": f"{command} {name}"})
    (tmp_path / "compile_commands.json").write_text(json.dumps(entries))
    vector, tile = compiled._sources(tmp_path)
    assert (vector.isa, vector.is_tile) == ("neon", False)
    assert (tile.isa, tile.is_tile) == ("neon_dotprod", True)
    assert vector.defines("softmax")
    assert not vector.defines("gemm")
    assert tile.defines("gemm")
    assert not tile.defines("softmax")


def test_command_without_its_outputs() -> None:
    command = ["c++", "-O3", "-MD", "-MT", "a.o", "-MF", "a.o.d", "-o", "a.o", "-c", "/x/a.cc"]
    assert list(compiled._without_outputs(command)) == ["c++", "-O3", "/x/a.cc"]


@pytest.mark.parametrize(
    ("pressure", "binding"),
    [
        ({"V0": 4.0, "V1": 4.1, "V2": 4.0, "V3": 4.0, "L0": 1.0}, ("V0-V3", 4.025)),
        ({"V0": 4.0, "V1": 1.0, "V2": 4.0, "V3": 1.0, "L0": 1.0}, ("V0+V2", 4.0)),
        ({"V0": 1.0, "V1": 1.0, "L0": 2.0, "L1": 1.0}, ("L0", 2.0)),
        ({"V0": 0.1, "V1": 0.1}, ("dispatch", 0.5)),
    ],
)
def test_binding_pipes(pressure: dict[str, float], binding: tuple[str, float]) -> None:
    name, cycles = llvm_mca.Analysis(5.0, 8, 8.0, pressure, 0.5).binding()
    assert name == binding[0]
    assert cycles == pytest.approx(binding[1])


@pytest.mark.parametrize(
    ("resource", "unit"),
    [("V2UnitV3", "V3"), ("V2UnitL01.\x01", "L1"), ("V1UnitS.\x00", "S0"), ("N1UnitM", "M")],
)
def test_unit_names(resource: str, unit: str) -> None:
    assert llvm_mca._unit_name(resource) == unit


def test_stores_that_move_their_pointer() -> None:
    code = ["stp q0, q1, [x9], #64", "str q0, [x9, #-16]!", "ldr q0, [x9], #16", "str q0, [x9, #8]"]
    assert llvm_mca._split(code) == [
        "stp q0, q1, [x9]",
        "add x9, x9, #64",
        "str q0, [x9, #-16]",
        "sub x9, x9, #16",
        "ldr q0, [x9], #16",
        "str q0, [x9, #8]",
    ]


@pytest.mark.skipif(
    shutil.which(llvm_mca.TOOL) is None,
    reason=f"needs {llvm_mca.TOOL}; make test-aarch64 installs and runs it",
)
def test_simulation() -> None:
    fmla = [f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(16)]
    fcvtl = [f"fcvtl v{i}.4s, v31.4h" for i in range(4)]
    first, second = llvm_mca.analyse([fmla, fcvtl], "neoverse-v2")
    assert first.binding()[0] == "V0-V3"
    assert first.cycles == pytest.approx(4, rel=0.02)
    assert second.binding()[0] == "V0+V2"
    assert second.cycles == pytest.approx(4, rel=0.02)
    with pytest.raises(RuntimeError, match="nonsense"):
        llvm_mca.analyse([["nonsense x0"]], "neoverse-v2")
