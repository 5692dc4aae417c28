"""Builds the CUDA backend with the host compiler: its kernels run on the CPU, thread by thread.

    python tests/cuda_on_cpu/build.py OUT_DIR [--only gelu.cu ...] [--sanitize | --watch]

makes OUT_DIR/libspatile_cuda_on_cpu.so. One object per file stays in OUT_DIR; what did not change
(sources, headers, flags) is not compiled again. Files that are not there yet are tolerated:
functions that no file defines are listed, and abort with "not built" when called.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "cuda"
FAST = ["tensor_ops"]
# What the core and the CUDA backend share.
SHARED = [ROOT / "csrc" / name for name in ("status.c", "encoder_cost.c")]
NAME = "libspatile_cuda_on_cpu.so"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Every access calls a function, which watch.cc defines in place of the thread sanitizer's library.
WATCH = ["-fsanitize=thread", "-DSPT_EMULATED_WATCH"]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def flags(*, sanitize: bool, watch: bool) -> list[str]:
    found = [
        *("-g1", f"-fmacro-prefix-map={ROOT}/=", "-fPIC", "-pthread"),
        *("-fvisibility=hidden", *WARNINGS),
        *("-DSPT_CUDA_ON_CPU", f"-I{HERE}", f"-I{CUDA}"),
    ]
    if "x86" in os.uname().machine or os.uname().machine == "amd64":
        found += ["-march=native"]  # fmaf is an instruction then, and not a slow function
    if sanitize:
        found += [*SANITIZERS, "-fno-omit-frame-pointer"]
    return [*found, *WATCH] if watch else found


def up_to_date(target: Path, command: str) -> bool:
    note, rule = target.with_suffix(".command"), target.with_suffix(".d")
    if not (target.exists() and note.exists() and rule.exists() and note.read_text() == command):
        return False
    named = rule.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    made = target.stat().st_mtime
    return all(Path(name).exists() and Path(name).stat().st_mtime < made for name in named)


def compile_one(source: Path, out: Path, options: list[str]) -> tuple[Path, str | None]:
    """The object, and what the compiler said if it failed."""
    target = out / (source.stem + "-" + hashlib.sha1(str(source).encode()).hexdigest()[:6] + ".o")
    own = [option for option in options if option not in WATCH[:1] or source.suffix == ".cu"]
    # Inlining everything into everything takes gcc three times as long at -O2 as at -O1.
    own.insert(0, "-O1" if source.suffix == ".cu" else "-O3" if source.stem in FAST else "-O2")
    if source.suffix == ".c":
        command = [*shlex.split(os.environ.get("CC", "gcc")), *own, "-std=gnu11"]
    else:
        command = [*compiler(), *own, "-std=c++17", "-x", "c++"]
    command += ["-MMD", "-MF", str(target.with_suffix(".d")), "-c", str(source), "-o", str(target)]
    line = shlex.join(command)
    if up_to_date(target, line):
        return target, None
    target.unlink(missing_ok=True)
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode == 0:
        target.with_suffix(".command").write_text(line)
        if ran.stderr:
            print(ran.stderr, file=sys.stderr)
        return target, None
    return target, f"{line}\n{ran.stderr}"


def missing(objects: list[Path]) -> list[str]:
    """The functions spt_... that the objects call and none of them defines."""
    listed = subprocess.run(["nm", *map(str, objects)], capture_output=True, text=True, check=True)
    undefined, defined = set(), set()
    for line in listed.stdout.splitlines():
        match = re.match(r"[0-9a-f]* *([A-Za-z]) (\S+)$", line)
        if match and "spt_" in match[2]:
            (undefined if match[1] == "U" else defined).add(match[2])
    return sorted(undefined - defined)


def stand_ins(names: list[str], out: Path) -> Path:
    """A file that defines them all, so that the library loads."""
    text = "#include <stdio.h>\n#include <stdlib.h>\n"
    text += '#define SAY(name) fputs("cuda_on_cpu: " name ": not built\\n", stderr), abort()\n'
    for i, name in enumerate(names):
        text += f'extern "C" void missing{i}() __asm__("{name}");\n'
        text += f'void missing{i}() {{ SAY("{name}"); }}\n'
    path = out / "not_built.cc"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def build(
    out: Path,
    sources: list[Path],
    *,
    sanitize: bool = False,
    watch: bool = False,
    jobs: int = 2,
    keep_going: bool = False,
    name: str = NAME,
) -> Path:
    """Compiles `sources` and the emulation, links them; RuntimeError has the compiler's words."""
    out.mkdir(parents=True, exist_ok=True)
    options = flags(sanitize=sanitize, watch=watch)
    every = list(dict.fromkeys([*sorted(HERE.glob("*.cc")), *SHARED, *sources]))
    with ThreadPoolExecutor(jobs) as pool:
        made = list(pool.map(lambda source: compile_one(source, out, options), every))
    wrong = [said for _, said in made if said is not None]
    if wrong and not keep_going:
        raise RuntimeError("\n".join(wrong))
    for said in wrong:
        print(said, file=sys.stderr)
    objects = [target for target, said in made if said is None]
    absent = missing(objects)
    if absent:
        print("not built:", *absent)
        target, said = compile_one(stand_ins(absent, out), out, [*options[:1], "-fPIC"])
        if said is not None:
            raise RuntimeError(said)
        objects.append(target)
    library = out / name
    if library.exists() and all(o.stat().st_mtime < library.stat().st_mtime for o in objects):
        return library
    link = [*compiler(), "-shared", "-pthread", *(SANITIZERS if sanitize else [])]
    link += ["-Wl,--no-undefined", "-Wl,-Bsymbolic", *map(str, objects), "-ldl"]
    partial = library.with_suffix(f".{os.getpid()}")
    ran = subprocess.run([*link, "-o", str(partial)], capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(f"{shlex.join(link)}\n{ran.stderr}")
    partial.replace(library)  # a process that has the old one loaded keeps it
    return library


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for objects and library")
    parser.add_argument("--only", nargs="+", metavar="X.cu", help="these files of cuda/ alone")
    parser.add_argument("--sanitize", action="store_true", help="address and undefined sanitizers")
    parser.add_argument("--watch", action="store_true", help="watch every access: races, bounds")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--keep-going", action="store_true", help="leave out files that do not compile"
    )
    arguments = parser.parse_args()
    names = arguments.only or sorted(path.name for path in CUDA.glob("*.cu"))
    sources = [CUDA / Path(name).name for name in names]
    for source in sources:
        if not source.exists():
            print(f"not there yet: {source.name}")
    try:
        library = build(
            arguments.out.resolve(),
            [source for source in sources if source.exists()],
            sanitize=arguments.sanitize,
            watch=arguments.watch,
            jobs=arguments.jobs,
            keep_going=arguments.keep_going,
        )
    except RuntimeError as wrong:
        print(wrong, file=sys.stderr)
        return 1
    print(library)
    return 0


if __name__ == "__main__":
    sys.exit(main())
