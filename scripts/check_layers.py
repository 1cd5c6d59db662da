#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check what may use what: the rules of the source layout that a compiler does not enforce.

1. csrc/: a folder may include itself and those before it in `LAYERS`, never a later one;
   kernels/<op>/ may not include another op, only the shared folders `SHARED_KERNELS`.
2. Framework headers (Python, NumPy, pybind11, torch) stand in csrc/bindings/ only, threads in
   csrc/ops/ and above only, Arm Compute Library's headers in csrc/backends/acl/ only.
3. Variables named CAPIBARA_AXION_* are read in env.py and csrc/cpu/ only.
4. The modules in `LIGHT_MODULES` import none of `HEAVY_PACKAGES`.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LAYERS = ("base", "cpu", "kernels", "backends", "ops", "bindings")
SHARED_KERNELS = ("common", "math", "fp8", "gemm")
CXX_SUFFIXES = frozenset({".h", ".cc", ".inc"})
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
FRAMEWORK_HEADER = re.compile(r"^(pybind11|numpy|torch|ATen|c10)/|^(Python|structmember)\.h$")
ACL_HEADER = re.compile(r"^arm_compute/")
THREADS = re.compile(r"^\s*#\s*(?:include\s*<(?:omp\.h|thread|future|pthread\.h)>|pragma\s+omp\s)")
GETENV = re.compile(r"\bgetenv\s*\(")
ENV_NAME = re.compile(r"CAPIBARA_AXION_[A-Z0-9_]+")

LIGHT_MODULES = (
    "capibara_axion",
    "capibara_axion.ops",
    "capibara_axion.reference",
    "capibara_axion.info",
    "capibara_axion.env",
    "capibara_axion.cli",
    "capibara_axion.int4",
)
HEAVY_PACKAGES = ("torch", "vllm", "aiohttp")


def include_error(file: Path, target: Path) -> str | None:
    """Why `file` may not include `target` (both relative to csrc/); None when it may."""
    own, other = file.parts[0], target.parts[0]
    if other not in LAYERS:
        return f"{other}/ is no layer; those are {', '.join(LAYERS)}"
    if LAYERS.index(other) > LAYERS.index(own):
        return f"{own}/ stands below {other}/ and may not include it"
    both_kernels = own == other == "kernels" and len(file.parts) > 2 and len(target.parts) > 2
    if both_kernels and target.parts[1] not in (file.parts[1], *SHARED_KERNELS):
        return f"kernels/{file.parts[1]}/ may not use another op's folder"
    return None


def check_cxx_line(csrc: Path, file: Path, line: str) -> Iterator[str]:
    """Errors in one line of `file`, which is relative to `csrc`."""
    layer = file.parts[0]
    if GETENV.search(line) and layer != "cpu":
        yield "reads the environment; only csrc/cpu/ does"
    if THREADS.search(line) and LAYERS.index(layer) < LAYERS.index("ops"):
        yield f"{layer}/ uses threads; only csrc/ops/ starts them"
    match = INCLUDE.match(line)
    if match is None:
        return
    bracket, name = match.groups()
    if FRAMEWORK_HEADER.search(name) and layer != "bindings":
        yield f"<{name}> is a framework header; those stand in csrc/bindings/ only"
    elif ACL_HEADER.search(name) and file.parts[:2] != ("backends", "acl"):
        yield f"<{name}> is Arm Compute Library's; those stand in csrc/backends/acl/ only"
    elif bracket == '"':
        beside = csrc / file.parent / name
        target = beside.resolve().relative_to(csrc.resolve()) if beside.exists() else Path(name)
        error = include_error(file, target)
        if error:
            yield f'"{name}": {error}'


def check_cxx(csrc: Path) -> Iterator[str]:
    """Errors in the C++ sources below `csrc`."""
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in CXX_SUFFIXES):
        file = path.relative_to(csrc)
        if file.parts[0] not in LAYERS:
            yield f"{path}: stands in none of the layers {', '.join(LAYERS)}"
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for error in check_cxx_line(csrc, file, line):
                yield f"{path}:{number}: {error}"


def environment_reads(tree: ast.AST) -> Iterator[ast.AST]:
    """Expressions that look a CAPIBARA_AXION_* name up; assignments to one do not count."""
    for node in ast.walk(tree):
        keys: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            keys = [node.slice]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keys = node.args[:1] if name in ("get", "getenv") else []
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            keys = [node.left]
        for key in keys:
            if isinstance(key, ast.Constant) and ENV_NAME.fullmatch(str(key.value)):
                yield node


def check_python(package: Path) -> Iterator[str]:
    """Errors in the Python sources below `package`."""
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package) == Path("env.py"):
            continue
        for node in environment_reads(ast.parse(path.read_text(encoding="utf-8"))):
            line = getattr(node, "lineno", 0)
            yield f"{path}:{line}: reads an environment variable of ours; only env.py does"


def check_light_imports() -> Iterator[str]:
    """Errors of the installed package: light modules that bring heavy ones along."""
    for module in LIGHT_MODULES:
        program = (
            f"import sys, {module}\n"
            f"print(*(name for name in {HEAVY_PACKAGES!r} if name in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        if done.returncode:
            yield f"import {module} failed:\n{done.stderr}"
        elif done.stdout.strip():
            yield f"import {module} also imports {done.stdout.strip()}"


def package_is_built() -> bool:
    """Whether the native module can be imported here."""
    program = "import capibara_axion._core"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def main(argv: list[str] | None = None) -> int:
    """Print every violation; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default_root = Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=Path, default=default_root, help="the source tree")
    parser.add_argument("--no-imports", action="store_true", help="leave rule 4 out")
    args = parser.parse_args(argv)

    errors = list(check_cxx(args.root / "csrc"))
    errors += check_python(args.root / "python" / "capibara_axion")
    if args.no_imports:
        pass
    elif package_is_built():
        errors += check_light_imports()
    else:
        print("layers: imports not checked, capibara_axion is not installed here")
    print("\n".join(errors) if errors else "layers: no violation")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
