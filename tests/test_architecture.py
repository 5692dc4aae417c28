"""Who may know whom, read from the source text; what an import does; what every public name has."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spatile
from spatile import _core, ops, reference

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CUDA = ROOT / "cuda"
PACKAGE = ROOT / "python" / "spatile"

GROUND = {"_core", "_version", "device", "patterns"}
MAY_IMPORT = {
    "_core": set(),
    "_version": set(),
    "patterns": set(),
    "device": {"_core", "_version"},
    "ops": GROUND,
    "reference": {"patterns"},
    "sparsity": {"_version", "ops", "patterns"},
    "inference": GROUND | {"ops", "sparsity"},
    "report": GROUND | {"ops", "sparsity", "inference"},
    "torch": GROUND | {"ops", "reference", "sparsity", "inference", "finetune"},
    "finetune": GROUND | {"ops", "reference", "sparsity", "inference", "report", "torch"},
    "sweep": GROUND | {"sparsity", "inference", "report", "finetune"},
    "benchmarks": None,  # everything
    "cli": None,
    "__main__": {"cli"},
}
"""What a part of the package may import of the package; itself always."""

MAY_USE = {
    "torch": {"torch", "finetune", "sweep", "benchmarks", "cli"},
    "transformers": {"torch", "finetune", "benchmarks", "cli"},
    "accelerate": {"torch", "finetune"},
    "datasets": {"finetune"},
    "tokenizers": {"inference", "finetune"},
    "safetensors": {"inference", "torch", "finetune"},
    "matplotlib": {"report"},
    "onnx": {"benchmarks"},
    "onnxruntime": {"benchmarks"},
    "openvino": {"benchmarks"},
    "scipy": set(),
    "sklearn": set(),
}
"""Which parts may use a package other than NumPy."""


def c_files() -> list[Path]:
    return sorted([*CSRC.rglob("*.c"), *CSRC.rglob("*.h")])


def cuda_files() -> list[Path]:
    return sorted(path for kind in ("*.cu", "*.cuh", "*.h") for path in CUDA.rglob(kind))


def code_of(path: Path) -> str:
    """A C or CUDA file without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text("utf-8"), flags=re.S)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text("utf-8"), re.M)


def own_includes(path: Path) -> Iterator[Path]:
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text("utf-8"), re.M):
        yield (path.parent / name).resolve()


def folder(path: Path) -> str:
    """The folder of csrc/ that a file is in; "" for csrc/ itself."""
    return path.relative_to(CSRC).parts[0] if path.parent != CSRC else ""


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the package that a file belongs to: its folder, or its own name."""
    top = path.relative_to(PACKAGE).parts[0]
    return top.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file, those inside functions too."""
    package = ["spatile", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- C ------------------------------------------------------------------------------------------


def test_python_h_only_in_the_binding() -> None:
    python = re.compile(r"^(Python|structmember|numpy/.*)\.?h?$")
    bad = [
        f"{relative(path)} includes {name}"
        for path in c_files()
        if folder(path) != "binding"
        for name in includes(path)
        if python.match(name)
    ]
    assert not bad


def test_c_folders_know_only_whom_they_may() -> None:
    allowed = {"": {""}, "ops": {"", "ops"}, "cpu": {"", "cpu"}, "binding": {"", "binding"}}
    bad = [
        f"{relative(path)} includes {relative(target)}"
        for path in c_files()
        for target in own_includes(path)
        if folder(target) not in allowed[folder(path)]
    ]
    assert not bad


def test_the_binding_does_not_reach_behind_the_contract() -> None:
    """The binding calls spatile.h; the table that backends fill is not its business."""
    bad = [p.name for p in c_files() if folder(p) == "binding" and "../backend.h" in includes(p)]
    assert not bad


def test_every_own_include_exists() -> None:
    bad = [
        f"{relative(path)} includes {target}"
        for path in c_files()
        for target in own_includes(path)
        if not target.is_file()
    ]
    assert not bad


def test_ops_name_no_backend() -> None:
    named = re.compile(r"\b(spt_cpu_|spt_cuda_|avx|cuda)\w*", re.I)
    bad = [
        f"{relative(path)}: {match.group(0)}"
        for path in c_files()
        if folder(path) == "ops"
        for match in named.finditer(path.read_text("utf-8"))
    ]
    assert not bad


def test_intrinsics_only_in_the_isa_files() -> None:
    intrinsic = re.compile(r"\b_mm(256|512)?_\w+|\b__m(128|256|512)\w*|immintrin\.h|arm_neon\.h")
    bad = [
        f"{relative(path)}: {match.group(0)}"
        for path in c_files()
        if not (path.parent == CSRC / "cpu" / "simd" or re.match(r"(avx|amx)", path.name))
        for match in intrinsic.finditer(path.read_text("utf-8"))
    ]
    assert not bad


# ---- CUDA ---------------------------------------------------------------------------------------


def test_the_cuda_backend_knows_the_contract_alone() -> None:
    """Its own files and the headers of csrc/ itself; emulated, one of the emulation's besides."""
    emulation = ROOT / "tests" / "cuda_on_cpu"
    bad = [
        f"{relative(path)} includes {target}"
        for path in cuda_files()
        for target in own_includes(path)
        if not (target.is_file() and target.parent in (CUDA, CSRC))
        and not (emulation / target.name).is_file()
    ]
    assert not bad


def test_cuda_headers_only_in_the_cuda_backend() -> None:
    header = re.compile(
        r"^(cuda|cublas|driver_types|vector_types|mma\.h|nv/|cub/|cooperative_groups)"
    )
    bad = [
        f"{relative(path)} includes {name}"
        for path in c_files()
        for name in includes(path)
        if header.match(name)
    ]
    assert not bad
    libraries = re.compile(r"^(cub/|cooperative_groups|thrust/|mma\.h)")
    bad = [
        f"{relative(path)} includes {name}"
        for path in cuda_files()
        for name in includes(path)
        if libraries.match(name)
    ]
    assert not bad


def test_ptx_only_in_its_wrappers() -> None:
    bad = [
        relative(path)
        for path in cuda_files()
        if path.name not in ("mma.cuh", "async_copy.cuh", "exp2.cuh", "opaque.cuh")
        and re.search(r"\b(asm|__asm__)\b", code_of(path))
    ]
    assert not bad


def test_kernels_are_launched_by_the_one_macro() -> None:
    """Shared memory, too, is the macro's: the emulation can guard no other."""
    launch = re.compile(r"<<<|cudaLaunchKernel|\bSPT_LAUNCH_RAW\b|\b__shared__\b|\b__constant__\b")
    bad = [
        f"{relative(path)}: {match.group(0)}"
        for path in cuda_files()
        if path.name != "launch.h"
        for match in launch.finditer(code_of(path))
    ]
    assert not bad


def test_the_cuda_library_exports_one_symbol() -> None:
    bad = [
        relative(path)
        for path in cuda_files()
        if "visibility" in code_of(path) and path.name != "entry.cu"
    ]
    assert not bad
    assert code_of(CUDA / "entry.cu").count('visibility("default")') == 1


# ---- Python -------------------------------------------------------------------------------------


def test_every_part_is_known() -> None:
    assert {part(path) for path in python_files()} - {"__init__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_parts_import_only_whom_they_may(path: Path) -> None:
    me = part(path)
    if me == "__init__":
        allowed: set[str] | None = GROUND | {"ops"}
    else:
        allowed = MAY_IMPORT[me]
    bad = []
    for line, module in imported(path):
        names = module.split(".")
        if names[0] == "spatile" and len(names) > 1 and allowed is not None:
            submodule = (PACKAGE / names[1]).is_dir() or names[1] in MAY_IMPORT
            if submodule and names[1] != me and names[1] not in allowed:
                bad.append(f"line {line} imports {module}")
        elif names[0] in MAY_USE and me not in MAY_USE[names[0]]:
            bad.append(f"line {line} imports {module}")
    assert not bad, f"{relative(path)}: {bad}"


WORK_ON_IMPORT = {
    # A tier that this processor can't run is refused before anything has used another.
    # transformers finds an attention back-end by name only after someone has registered it.
    "python/spatile/torch/__init__.py": "register()",
}
"""The statements that may do more than bind names, and why."""


def is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, (str, type(...)))
    )


def work_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module that do more than bind names."""
    quiet = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
        ast.AugAssign,
    )
    for node in body:
        if isinstance(node, ast.If):
            if "__name__" not in ast.unparse(node.test):
                yield from work_on_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [s for h in node.handlers for s in h.body if not isinstance(s, ast.Pass)]
            yield from work_on_import([*node.body, *handlers, *node.orelse, *node.finalbody])
        elif not (isinstance(node, quiet) or is_docstring(node)):
            yield node


@pytest.mark.parametrize(
    "path",
    [p for p in python_files() if p.name != "__main__.py"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_no_module_does_work_on_import(path: Path) -> None:
    body = ast.parse(path.read_text("utf-8")).body
    bad = [f"line {node.lineno}: {ast.unparse(node)[:80]}" for node in work_on_import(body)]
    bad = [line for line in bad if not line.endswith(WORK_ON_IMPORT.get(relative(path), "\n"))]
    assert not bad, f"{relative(path)}: {bad}"


def test_import_needs_numpy_alone() -> None:
    code = (
        "import sys; import spatile, spatile.reference; "
        "known = {'numpy', 'spatile', *sys.stdlib_module_names}; "
        "print(sorted({m.split('.')[0] for m in sys.modules if not m.startswith(('_', 'cython'))}"
        " - known))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    found = set(ast.literal_eval(run.stdout))
    heavy = {"torch", "transformers", "tokenizers", "safetensors", "matplotlib", "ml_dtypes"}
    assert not found & heavy
    assert not found & {"scipy", "sklearn", "datasets", "accelerate", "tqdm", "IPython"}
    assert not found & {"onnx", "onnxruntime", "openvino"}


def test_inference_needs_no_torch() -> None:
    code = (
        "import sys; import spatile.inference; "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr


# ---- public names -------------------------------------------------------------------------------

OPS = sorted(name for name in ops.__all__ if inspect.isfunction(getattr(ops, name)))
OPS_OF_THE_PUBLIC_FACE = {
    *("attention", "attention_backward", "linear", "linear_backward", "topk"),
    *("group_norms", "group_beta", "group_lasso", "group_lasso_grad", "add_group_lasso_grad_"),
    *("group_shrink_", "prune_mask", "expand_mask", "apply_mask_", "pack"),
    *("layer_norm", "gelu", "softmax", "embedding", "second_order_prune"),
}


def test_all_ops_of_the_public_face_exist() -> None:
    assert set(OPS) >= OPS_OF_THE_PUBLIC_FACE
    assert set(ops.__all__) <= set(spatile.__all__)


@pytest.mark.parametrize("name", spatile.__all__)
def test_public_names_resolve_and_say_what_they_are(name: str) -> None:
    value = getattr(spatile, name)
    if not isinstance(value, str) and (inspect.isfunction(value) or inspect.isclass(value)):
        assert value.__doc__, f"spatile.{name} has no docstring"


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_a_twin_with_the_same_parameters(name: str) -> None:
    def shape(function: object) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return [(p.name, p.kind, p.default) for p in parameters]

    mine, twin = shape(getattr(ops, name)), shape(getattr(reference, name))
    # What is first is positional, and its name is the reader's business.
    assert [p[1:] for p in mine] == [p[1:] for p in twin]
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert [p for p in mine if p[1] == keyword] == [p for p in twin if p[1] == keyword]


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(ops, name).__doc__ or ""), f"spatile.{name} has no example"


def modules() -> list[str]:
    return [
        "spatile",
        *(
            m.name
            for m in pkgutil.walk_packages(spatile.__path__, "spatile.", onerror=lambda _: None)
            if not m.name.endswith(("._core", ".__main__"))
        ),
    ]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    # NumPy's and the types' own representation of a number differ between versions: examples print
    # plain Python values.
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} fail"


def test_stub_names_are_those_of_the_extension() -> None:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text("utf-8"))
    stub = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    stub |= {
        n.target.id
        for n in tree.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    assert stub == {name for name in dir(_core) if not name.startswith("__")}
