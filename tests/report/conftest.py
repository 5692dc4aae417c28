"""The run on the small model that the pipeline's tests use too."""

from __future__ import annotations

from tests.finetune.conftest import (  # noqa: F401
    finished,
    finished_pairs,
    tiny_data,
    tiny_model,
)
