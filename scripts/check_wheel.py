#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check what is in a wheel: its platform tag, its files, what its native module needs and exports.

With --build, CMake's folder of that wheel, also that nothing but the sources of an instruction set
(`isa_*`, `tiles_*`) is compiled beyond the architecture's baseline: what every process runs must
run on every CPU. scripts/wheel.sh --check calls this, and then runs the wheel.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "capibara_axion"
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
# glibc's own, among them those that it has merged into libc since; libc++ is static.
SYSTEM_LIBRARY = re.compile(r"(lib(c|m|dl|pthread|rt)|ld-linux-(x86-64|aarch64))\.so\.\d+")
EXPORTS = {"PyInit__core"}

# What an object of the baseline must not hold. On x86_64: instructions with a VEX or EVEX prefix,
# whose names begin with v (or are of BMI), and some of those between SSE2 and AVX.
BEYOND_X86_64 = re.compile(
    r"\t(v(?!err|erw|m)\w+|andn|bextr|blsi|blsr|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx"
    r"|popcnt|crc32\w?|pshufb|pextr[bdq]|pinsr[bdq]|round[ps][sd]|dpp[sd]|aes\w+)\b"
)
# llvm-objdump shows so what none of the features that it was given has.
UNKNOWN = re.compile(r"<unknown>")


def platform_errors(wheel: Path, glibc: tuple[int, int], arch: str) -> Iterator[str]:
    """Whether the wheel's tags and what auditwheel finds are of `arch` and at most `glibc`."""
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        yield f"auditwheel show failed:\n{done.stdout}{done.stderr}"
        return
    found = json.loads(done.stdout)
    tags = {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}
    print(f"  tags {', '.join(sorted(tags))}; auditwheel: {found['overall_tag']}")
    if found["unsupported_isa"]:
        yield "auditwheel: the native module asks for a CPU beyond the baseline"
    for tag in (*tags, found["overall_tag"]):
        policy = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", tag.replace("x2014_", "x_2_17_"))
        if not policy or policy[3] != arch or (int(policy[1]), int(policy[2])) > glibc:
            yield f"platform {tag}: expected manylinux_{glibc[0]}_{glibc[1]}_{arch} or older"


def content_errors(names: list[str], native: str) -> Iterator[str]:
    """Whether the wheel has the package's files, all of them, and nothing else."""
    sources = ROOT / "python"
    expected = {
        str(path.relative_to(sources))
        for path in (sources / PACKAGE).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    expected.add(native)
    files = {name for name in names if not name.endswith("/")}
    metadata = {name for name in files if re.match(rf"{PACKAGE}-[^/]+\.dist-info/", name)}
    yield from (f"{name} is missing" for name in sorted(expected - files))
    yield from (f"{name} is not of the package" for name in sorted(files - expected - metadata))
    found = {name.split("/", 1)[1] for name in metadata}
    if found != METADATA:
        yield f"metadata: expected {sorted(METADATA)}, got {sorted(found)}"


def elf_errors(content: bytes, arch: str) -> Iterator[str]:
    """Whether the native module needs only glibc, exports only what Python calls, is stripped."""
    elf = ELFFile(BytesIO(content))
    machine = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}[arch]
    if elf["e_machine"] != machine:
        yield f"the native module is for {elf['e_machine']}, expected {machine}"
    for section in elf.iter_sections():
        if section.name == ".symtab" or section.name.startswith(".debug"):
            yield f"the native module is not stripped: it has {section.name}"
        if isinstance(section, DynamicSection):
            needed = [getattr(tag, "needed", "") for tag in section.iter_tags("DT_NEEDED")]
            print(f"  needs {', '.join(needed)}")
            yield from (f"needs {name}" for name in needed if not SYSTEM_LIBRARY.fullmatch(name))
        if isinstance(section, SymbolTableSection):
            exported = {
                symbol.name
                for symbol in section.iter_symbols()
                if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
            }
            if section.name == ".dynsym" and exported != EXPORTS:
                yield f"exports {sorted(exported)}, expected {sorted(EXPORTS)}"


def disassembler(arch: str) -> tuple[list[str], re.Pattern[str]] | None:
    """Command, and what it shows only for instructions beyond the baseline; None without one."""
    if arch == "x86_64":
        return ["objdump", "--no-show-raw-insn", "-d"], BEYOND_X86_64
    llvm = shutil.which("llvm-objdump-19") or shutil.which("llvm-objdump")
    return ([llvm, "--mattr=+v8a", "-d"], UNKNOWN) if llvm else None


def baseline_errors(build: Path, arch: str) -> Iterator[str]:
    """Instructions beyond the baseline in objects that belong to no instruction set."""
    tool = disassembler(arch)
    if not tool:
        print("  baseline objects not checked: there is no llvm-objdump")
        return
    command, beyond = tool
    for path in (objects := sorted(build.rglob("*.o"))):
        if any(part.startswith(("isa_", "tiles_")) for part in path.parts):
            continue
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if beyond.search(line)]
        if lines:
            yield f"{path}: {len(lines)} instructions beyond the baseline, such as {lines[0]!r}"
    # A pattern that finds nothing anywhere would prove nothing.
    control = [path for path in objects if f"isa_{CONTROL[arch]}.dir" in path.parts]
    texts = [
        subprocess.run([*command, str(path)], capture_output=True, text=True).stdout
        for path in control
    ]
    if not any(map(beyond.search, texts)):
        yield f"{build}: found no instruction beyond the baseline even in {CONTROL[arch]}"
    print(f"  {len(objects)} objects in {build.name}, baseline ones checked")


CONTROL = {"x86_64": "avx2", "aarch64": "neon_bf16"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found and every error; 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--glibc", default="2.17", help="the newest that the wheel may need")
    parser.add_argument("--build", type=Path, help="CMake's folder, to look at its objects too")
    args = parser.parse_args(argv)

    _, _, _, tags = parse_wheel_filename(args.wheel.name)
    tag = min(tags, key=str)
    arch = "aarch64" if tag.platform.endswith("aarch64") else "x86_64"
    python = tag.interpreter.removeprefix("cp")
    native = f"{PACKAGE}/_core.cpython-{python}-{arch}-linux-gnu.so"
    major, minor = map(int, args.glibc.split("."))

    with zipfile.ZipFile(args.wheel) as archive:
        names = archive.namelist()
        content = archive.read(native) if native in names else None
    kib = args.wheel.stat().st_size / 1024
    print(f"{args.wheel.name}\n  {kib:.0f} KiB, {len(names)} files", end="")
    print(f", {Path(native).name} {len(content) / 1024:.0f} KiB" if content else "")
    errors = [*platform_errors(args.wheel, (major, minor), arch), *content_errors(names, native)]
    if content:
        errors += elf_errors(content, arch)
    if args.build:
        errors += baseline_errors(args.build, arch)
    print("\n".join(f"error: {error}" for error in errors) or "  no error")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
