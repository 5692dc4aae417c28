"""Small tables to load, and how loading others fails."""

from __future__ import annotations

from typing import Any

import pytest

from spatile.finetune.data import load_task

TRAIN = "sentence\tlabel\nfine\t1\nbad\t0\nso so\t1\n"
DEV = "sentence\tlabel\ngood\t1\nawful\t0\n"


def failure(error: type[Exception], *args: Any, **kwargs: Any) -> str:
    """The one line in which ``load_task`` says what is wrong."""
    with pytest.raises(error) as caught:
        load_task(*args, **kwargs)
    message = str(caught.value)
    assert message.startswith("load_task: ")
    assert "expected" in message
    assert "\n" not in message
    return message
