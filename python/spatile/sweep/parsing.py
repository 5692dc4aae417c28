"""How grids are spelled: lists and ranges of sparsities, seeds, methods as sets of settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from spatile.sweep.configuration import AS_IS, METHOD_NAME

__all__ = ["METHODS", "read_kept", "read_methods", "read_seeds", "read_sparsities"]

_PUBLISHED: dict[str, Any] = {
    "saliency": "magnitude",
    "scope": "matrix",
    "epochs_reweighted": 2.0,
    "epochs_retrain": 3.0,
    "lr_retrain": 5e-5,
    "prunings": 1,
    "distill": 0.0,
    "distill_hidden": 0.0,
}

#: Methods that need no spelling out: what they change of the settings of ``spatile finetune``.
#: E.T.'s stages with the lasso as a proximal step and as a gradient, and without the lasso; and no
#: training at all after the dense stage.
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "as-is": dict(AS_IS),
    "reweighted": {**_PUBLISHED, "method": "proximal"},
    "gradient": {**_PUBLISHED, "method": "gradient"},
    "none": {**_PUBLISHED, "strength": 0.0},
}


def read_sparsities(text: str) -> tuple[float, ...]:
    """Sparsities from a list, or from a range whose end belongs to it.

    >>> read_sparsities("0.3,0.5"), read_sparsities("0.3:0.9:0.2")
    ((0.3, 0.5), (0.3, 0.5, 0.7, 0.9))
    """
    found: list[float] = []
    for part in text.split(","):
        ends = part.split(":")
        try:
            numbers = [float(end) for end in ends]
        except ValueError:
            numbers = []
        finite = all(map(math.isfinite, numbers))
        if not finite or len(numbers) not in (1, 3) or (len(numbers) == 3 and not numbers[2] > 0):
            raise ValueError(
                f"sweep: sparsity is {text!r}, expected numbers and ranges FIRST:LAST:STEP, "
                f"separated by commas"
            )
        if len(numbers) == 1:
            found.append(numbers[0])
            continue
        first, last, step = numbers
        count = int((last - first) / step + 1e-6) + 1
        # Decimals are meant: 0.3 + 2 · 0.2 is 0.7, not what binary fractions make of it.
        found += [round(first + i * step, 10) for i in range(count)]
    return tuple(found)


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a list.

    >>> read_seeds("0,1,2")
    (0, 1, 2)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"sweep: seeds is {text!r}, expected whole numbers, separated by commas"
        ) from None


def read_kept(name: str, text: str) -> tuple[float, ...]:
    """Shares of tokens or heads from a list, the largest first.

    >>> read_kept("keep_tokens", "0.5,1")
    (1.0, 0.5)
    """
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError:
        found = {math.nan}
    if not all(0.0 < share <= 1.0 for share in found):
        raise ValueError(
            f"sweep: {name} is {text!r}, expected fractions in (0, 1], separated by commas"
        )
    return tuple(sorted(found, reverse=True))


def read_methods(text: str) -> dict[str, dict[str, Any]]:
    """Methods by name, as the settings that each changes.

    Separated by commas: a name of :data:`METHODS`, ``NAME=setting:value;setting:value`` (or
    nothing after the =), or a JSON file that maps names to settings. Values are read as JSON where
    they are that, else as words.
    Raises ValueError for another spelling and for a name that occurs twice.

    >>> read_methods("default,long=epochs_retrain:6;lr:1e-4")
    {'default': {}, 'long': {'epochs_retrain': 6, 'lr': 0.0001}}
    """
    methods: dict[str, dict[str, Any]] = {}
    for part in text.split(","):
        name, given, settings = part.partition("=")
        if not given and part.endswith(".json"):
            found = _read_file(Path(part))
        elif given:
            found = {name: _settings(name, settings)}
        elif name in METHODS:
            found = {name: METHODS[name]}
        else:
            raise ValueError(
                f"sweep: methods has {part!r}, expected {', '.join(METHODS)}, "
                f"NAME=setting:value;… or a JSON file"
            )
        for name, settings_of_it in found.items():
            if not METHOD_NAME.fullmatch(name):
                raise ValueError(
                    f"sweep: methods has the name {name!r}, expected letters, digits and _.+-"
                )
            if name in methods:
                raise ValueError(f"sweep: methods has {name!r} twice, expected each name once")
            methods[name] = dict(settings_of_it)
    return methods


def _settings(name: str, text: str) -> dict[str, Any]:
    settings = {}
    for part in text.split(";") if text else ():
        key, given, value = part.partition(":")
        if not given or not key:
            raise ValueError(
                f"sweep: method {name!r} has {part!r}, expected setting:value, separated by ;"
            )
        settings[key.strip().replace("-", "_")] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    words = {"on": True, "off": False}
    if text.casefold() in ("true", "false", "none"):
        text = text.casefold().replace("none", "null")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return words.get(text, text)


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep: {path} is not valid JSON ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise ValueError(f"sweep: {path} holds something else than names with their settings")
    return {
        name: {key.replace("-", "_"): value for key, value in settings.items()}
        for name, settings in found.items()
    }
