# SPDX-License-Identifier: Apache-2.0
"""Tables of sparse rows: each row is a linear function of atoms."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

LARGEST = 1 << 22  # entries of a dense matrix, at most
_CANCELS = 1e-5  # a sum that is smaller than this share of its parts is zero


def solve(table: Any, have: np.ndarray) -> Any:
    """Mark the atoms that the rows of a table determine; returns the rows left."""
    while True:
        unknown = np.flatnonzero(~have)
        left = table[:, unknown]
        table = table[np.flatnonzero(np.diff(left.indptr))]
        left = table[:, unknown]
        single = np.diff(left.indptr) == 1
        found = np.unique(left[np.flatnonzero(single)].indices)
        if not len(found):
            found = _joint(left)
        if not len(found):
            return table
        have[unknown[found]] = True


def _joint(left: Any) -> np.ndarray:
    """The columns of connected blocks of a table that have full column rank."""
    num_rows, num_columns = left.shape
    graph = sparse.bmat([[None, left], [left.T, None]])
    if not left.nnz:
        return np.zeros(0, int)
    _, label = connected_components(graph, directed=False)
    found = []
    for block in np.unique(label[:num_rows]):
        rows = np.flatnonzero(label[:num_rows] == block)
        columns = np.flatnonzero(label[num_rows:] == block)
        if len(rows) < len(columns) or len(rows) * len(columns) > LARGEST:
            continue
        dense = left[rows][:, columns].toarray()
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        tolerance = _CANCELS * max(dense.shape)
        singular = np.linalg.svd(dense, compute_uv=False)
        if singular[-1] > tolerance * singular[0]:
            found.append(columns)
    return np.concatenate([np.zeros(0, int), *found])


def total(a: Any, b: Any) -> Any:
    """The sum of two sparse matrices, without entries that are rounding."""
    return _without_rounding(a + b, abs(a) + abs(b))


def product(a: Any, b: Any) -> Any:
    """The product of two sparse matrices, without entries that are rounding."""
    return _without_rounding(a @ b, abs(a) @ abs(b))


def _without_rounding(sums: Any, parts: Any) -> Any:
    """The entries of a sum of which more than rounding is left."""
    kept = abs(sums) > _CANCELS * parts
    found = sums.multiply(kept).tocsr()
    found.eliminate_zeros()
    return found


def scaled(rows: Any, factor: np.ndarray) -> Any:
    """Rows times a constant for each component; complex factors turn pairs."""
    half = rows.shape[0] // 2
    if not np.iscomplexobj(factor):
        each = np.broadcast_to(factor.ravel(), rows.shape[0])
        return sparse.csr_matrix(sparse.diags(each.astype(np.float64)) @ rows)
    each = np.broadcast_to(factor.ravel(), half)
    turn = sparse.bmat(
        [
            [sparse.diags(each.real), sparse.diags(-each.imag)],
            [sparse.diags(each.imag), sparse.diags(each.real)],
        ],
        format="csr",
    )
    return product(turn, rows)
