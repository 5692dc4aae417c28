from typing import Any

import numpy as np

def linear(
    x: Any, w: Any, out: Any, bias: Any, residual: Any, activation: int, bf16: bool, /
) -> None: ...
def linear_backward(
    grad: Any, x: Any, w: Any, dx: Any, dw: Any, dbias: Any, bf16: bool, /
) -> None: ...
def group_norms(w: Any, group_rows: int, group_cols: int, norms: Any, /) -> None: ...
def group_beta(w: Any, group_rows: int, group_cols: int, eps: float, beta: Any, /) -> None: ...
def group_lasso(w: Any, group_rows: int, group_cols: int, beta: Any, /) -> float: ...
def group_lasso_grad(
    w: Any, group_rows: int, group_cols: int, beta: Any, strength: float, grad: Any, add: bool, /
) -> None: ...
def group_shrink(
    w: Any, group_rows: int, group_cols: int, beta: Any, strength: float, /
) -> None: ...
def apply_mask(w: Any, group_rows: int, group_cols: int, mask: Any, /) -> None: ...
def expand_mask(mask: Any, group_rows: int, group_cols: int, expanded: Any, /) -> None: ...
def prune_mask(
    matrices: tuple[tuple[Any, int, int, Any], ...], sparsity: float, scope: int, /
) -> None: ...
def second_order_removals(
    op: str,
    index: int,
    w: Any,
    group_rows: int,
    group_cols: int,
    gram: Any,
    damping: float,
    order: Any,
    cost: Any,
    /,
) -> None: ...
def second_order_apply(
    op: str,
    index: int,
    w: Any,
    group_rows: int,
    group_cols: int,
    gram: Any,
    damping: float,
    mask: Any,
    pruned: Any,
    /,
) -> float: ...
def layer_norm(x: Any, weight: Any, bias: Any, residual: Any, eps: float, out: Any, /) -> None: ...
def gelu(x: Any, tanh: bool, out: Any, /) -> None: ...
def dropout(x: Any, p: float, seed: int, out: Any, /) -> None: ...
def softmax(x: Any, out: Any, /) -> None: ...
def embedding(ids: Any, table: Any, out: Any, /) -> None: ...
def topk(scores: Any, k: Any, offsets: Any, values: Any, indices: Any, /) -> None: ...
def select_tokens(
    importance: Any, counts: Any, offsets: Any, protect: Any, indices: Any, /
) -> None: ...
def gather_tokens(x: Any, index: Any, out: Any, /) -> None: ...
def attention(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    mask: Any,
    bias: Any,
    lengths: Any,
    offsets: Any,
    kv_offsets: Any,
    lse: Any,
    token_importance: Any,
    head_importance: Any,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    dropout: float,
    seed: int,
    /,
) -> None: ...
def attention_backward(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    mask: Any,
    bias: Any,
    lengths: Any,
    offsets: Any,
    kv_offsets: Any,
    lse: Any,
    grad: Any,
    dq: Any,
    dk: Any,
    dv: Any,
    dbias: Any,
    causal: bool,
    window_left: int,
    window_right: int,
    scale: float,
    dropout: float,
    seed: int,
    /,
) -> None: ...
def strips(
    out: int,
    in_: int,
    run_ptr: Any,
    value_ptr: Any,
    run_start: Any,
    run_len: Any,
    values: Any,
    rows: Any,
    dtype: str,
    gpu: int = -1,
    /,
) -> object: ...
def csr(out: int, in_: int, row_ptr: Any, col: Any, values: Any, gpu: int = -1, /) -> object: ...

class DeviceArray:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def T(self) -> DeviceArray: ...  # noqa: N802
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def numpy(self) -> np.ndarray[Any, Any]: ...
    def reshape(self, *shape: Any) -> DeviceArray: ...
    def free(self) -> None: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __len__(self) -> int: ...

def to_device(x: Any, gpu: int, /) -> DeviceArray: ...
def from_device(x: Any, /) -> DeviceArray: ...
def device_empty(shape: tuple[int, ...], dtype: str, gpu: int, /) -> DeviceArray: ...
def addresses(
    x: Any, op: str, /
) -> tuple[int, tuple[int, ...], tuple[int, ...], int, bool, int]: ...
def gpu_count() -> int: ...
def gpu_info(gpu: int, /) -> tuple[str, int, int, int, int, int, int, int, str]: ...
def gpu_library() -> tuple[str, str]: ...
def gpu_synchronize(gpu: int, /) -> None: ...
def default_gpu() -> int | None: ...

class Encoder:
    def __new__(
        cls,
        width: int,
        n_heads: int,
        norm_eps: float,
        tables: tuple[Any, ...],
        layers: list[tuple[Any, ...]],
        bf16: bool,
        gpu: int | None = None,
        /,
    ) -> Encoder: ...
    def forward(
        self,
        offsets: Any,
        ids: Any,
        positions: Any,
        types: Any,
        first_only: bool,
        hidden: Any,
        pruning: tuple[Any, ...] | None,
        cost: Any,
        /,
    ) -> None: ...

def bf16_is_native() -> bool: ...
def cpu_tier() -> tuple[str, str, tuple[str, ...]]: ...
def select_cpu_tier(name: str, /) -> None: ...
def num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
