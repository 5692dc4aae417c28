"""What to prune, where, and when: plans, and the stages of pruning while training. No torch."""

from __future__ import annotations

from spatile.sparsity.files import read_document, write_atomically
from spatile.sparsity.layouts import DEFAULT_TARGETS, Matrix, find_matrices
from spatile.sparsity.matching import PlannedMatrix, match
from spatile.sparsity.plan import Plan, PlanEntry, StructureEntry, attention_multiply_adds
from spatile.sparsity.schedule import Schedule
from spatile.sparsity.stages import Stages, StageSteps
from spatile.sparsity.structure import LayerStructure, Structure

__all__ = [
    "DEFAULT_TARGETS",
    "LayerStructure",
    "Matrix",
    "Plan",
    "PlanEntry",
    "PlannedMatrix",
    "Schedule",
    "StageSteps",
    "Stages",
    "Structure",
    "StructureEntry",
    "attention_multiply_adds",
    "find_matrices",
    "match",
    "read_document",
    "write_atomically",
]
