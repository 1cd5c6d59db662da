# SPDX-License-Identifier: Apache-2.0
"""Runs llvm-mca on loops, and says which of the core's pipes limits each.

The binding pipes are those of the unit with the highest pressure, with the units of its kind that
are within 5 % of it: an FMLA spreads over V0-V3, which then bind as one pipe of four; an FCVTL goes
to V0 and V2 alone, which bind while V1 and V3 idle, however low the mean over all four.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

TOOL = "llvm-mca-19"
_TARGET = "-mtriple=aarch64-linux-gnu"
# Two lengths: what the first iterations take longer, or less while the queues fill, cancels out.
_ITERATIONS = (200, 600)
_WRITEBACK = re.compile(r"(st\w+ .*\[(x\d+|sp))(?:\], #?(-?\w+)|, #(-?\d+)\]!)$")
_UNIT = re.compile(r"[A-Z]\d?Unit([A-Z])(\d*)(?:\.(.))?$", re.DOTALL)
_ALIKE = 0.95


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What llvm-mca says of one iteration."""

    cycles: float
    instructions: int
    uops: float
    pressure: dict[str, float]  # cycles for which each unit is taken
    dispatch: float  # cycles that the front end takes: its width in micro-operations

    def binding(self) -> tuple[str, float]:
        """The name of the binding pipes, and how many of the cycles they are taken."""
        top = max(self.pressure, key=lambda unit: self.pressure[unit])
        if self.dispatch > self.pressure[top]:
            return "dispatch", self.dispatch
        alike = [unit for unit in self.kind(top[0]) if self._close(unit, top)]
        mean = sum(self.pressure[unit] for unit in alike) / len(alike)
        return _span(alike, self.kind(top[0])), mean

    def kind(self, letter: str) -> list[str]:
        """The units whose names begin alike: V vector, L load and store address, D store data,
        S and M integer, B branch."""
        return sorted(unit for unit in self.pressure if unit.startswith(letter))

    def spread_pressure(self, letter: str) -> float:
        """The cycles of work for all pipes of a kind, were it spread evenly over them."""
        units = self.kind(letter)
        return sum(self.pressure[unit] for unit in units) / len(units)

    def _close(self, unit: str, top: str) -> bool:
        return self.pressure[unit] >= _ALIKE * self.pressure[top]


def version() -> str | None:
    """The tool's version; None if it is not installed."""
    if shutil.which(TOOL) is None:
        return None
    shown = subprocess.run((TOOL, "--version"), capture_output=True, text=True, check=True).stdout
    found = re.search(r"LLVM version (\S+)", shown)
    return found[1] if found else "unknown"


def analyse(loops: Sequence[Sequence[str]], cpu: str) -> list[Analysis]:
    """One analysis for each of the loops, which are lists of instructions.

    Raises:
        RuntimeError: llvm-mca refuses an instruction.
    """
    if not loops:
        return []
    # Behind the assembler's own comment sign, llvm-mca does not see its marks.
    text = "".join(
        "# LLVM-MCA-BEGIN\n" + "\n".join(_split(code)) + "\n# LLVM-MCA-END\n" for code in loops
    )
    short, long = (
        json.loads(_run(text, cpu, f"-iterations={count}", "-json")) for count in _ITERATIONS
    )
    units = [_unit_name(name) for name in long["TargetInfo"]["Resources"]]
    regions = zip(loops, long["CodeRegions"], short["CodeRegions"], strict=True)
    return [_analysis(*each, units) for each in regions]


def report(code: Sequence[str], cpu: str) -> str:
    """llvm-mca's own account of one loop: pressure by instruction, and what waits for what."""
    return _run("\n".join(_split(code)) + "\n", cpu, "-iterations=200", "-bottleneck-analysis")


def _split(code: Sequence[str]) -> list[str]:
    """The loop with each store that moves its pointer as a store and an addition.

    The cores make such micro-operations of it, and the addition waits for nothing. llvm-mca has it
    wait for the data to be stored: where a loop reads and writes by one pointer, each iteration
    would then begin at the end of the last.
    """
    split: list[str] = []
    for line in code:
        if not (found := _WRITEBACK.match(line)):
            split.append(line)
            continue
        store, pointer, after, before = found.groups()
        split.append(f"{store}]" if before is None else f"{store}, #{before}]")
        step = before if after is None else after
        if step.startswith("-"):
            split.append(f"sub {pointer}, {pointer}, #{step[1:]}")
        else:
            split.append(f"add {pointer}, {pointer}, {'' if step.startswith('x') else '#'}{step}")
    return split


def _run(text: str, cpu: str, *options: str) -> str:
    command = (TOOL, _TARGET, f"-mcpu={cpu}", *options)
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr.strip()}")
    return done.stdout


def _analysis(
    code: Sequence[str], long: dict[str, Any], short: dict[str, Any], units: list[str]
) -> Analysis:
    summary, before = long["SummaryView"], short["SummaryView"]
    count = len(long["Instructions"])
    pressure = dict.fromkeys(units, 0.0)
    for entry in long["ResourcePressureView"]["ResourcePressureInfo"]:
        if entry["InstructionIndex"] == count:  # the sum over all instructions
            pressure[units[entry["ResourceIndex"]]] += entry["ResourceUsage"]
    uops = summary["TotaluOps"] / summary["Iterations"]
    iterations = summary["Iterations"] - before["Iterations"]
    return Analysis(
        cycles=(summary["TotalCycles"] - before["TotalCycles"]) / iterations,
        instructions=len(code),
        uops=uops,
        pressure=pressure,
        dispatch=uops / summary["DispatchWidth"],
    )


def _unit_name(resource: str) -> str:
    """V2 for "V2UnitV2", L1 for the second of "V2UnitL01", S0 for the first of "V1UnitS"."""
    found = _UNIT.match(resource)
    if not found:
        return resource
    kind, digits, copy = found.groups()
    if copy is None:
        return kind + digits
    index = int(copy) if copy.isdigit() else ord(copy)  # JSON has it as a character code
    return kind + (digits[index] if index < len(digits) else str(index))


def _span(units: list[str], kind: list[str]) -> str:
    """V0-V3 for all units of a kind, else V0+V2."""
    return f"{units[0]}-{units[-1]}" if len(units) > 2 and units == kind else "+".join(units)
