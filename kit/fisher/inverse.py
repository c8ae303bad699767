"""Products with the inverse of F = damping * I + (1/m) G^T G, exactly, through the m x m matrix of inner products.

F^-1 v = (v - G^T (m damping I + G G^T)^-1 G v) / damping (Woodbury), G (m, d) holding a gradient in each row. The
rank-1 recursion of the SSSE paper (Peste, Alistarh and Lampert 2021, eq. 3) leads to the same vector at O(m d^2)
instead of O(m^2 d). Here for gradients written out; `kit.fisher.streamed` never writes them out.
"""

import torch
from torch import Tensor

from kit.errors import InputError

_TILE = 512  # rows of G that are multiplied at a time
_COLUMNS = 8192  # entries added up in G's own precision; sums of such sums are float64


def inverse_product(gradients: Tensor, vectors: Tensor, damping: float, block: int | None = None) -> Tensor:
    """F^-1 v for each v of `vectors` (d,) or (r, d), of the same shape and type.

    gradients: G, (m, d). block: of F only the diagonal blocks of so many consecutive parameters, None for all of F.
    Products with G are taken in its own precision, the m x m system is solved in float64. The result's relative error
    is that precision's times the condition of F, at most (damping + |G|^2 / m) / damping. Raises InputError where
    damping is not positive, or too small for the precision.
    """
    d = gradients.shape[1]
    rows = vectors.reshape(-1, d)
    found = torch.empty_like(rows)
    for start in range(0, d, block or d):
        columns = slice(start, start + (block or d))
        part, vector = gradients[:, columns], rows[:, columns]
        coefficients = solve(gram(part), part @ vector.to(part).T, damping)
        found[:, columns] = subtract_and_scale(vector, coefficients.T.to(part) @ part, damping)
    return found.reshape(vectors.shape)


def solve(inner: Tensor, products: Tensor, damping: float) -> Tensor:
    """c with (m damping I + G G^T) c = G v, (m, r) float64, from inner = G G^T (m, m) and products = G v (m, r)."""
    if not damping > 0:
        raise InputError(f"damping is {damping}: F has an inverse only with a positive one")
    system = inner.to(torch.float64, copy=True)
    system.diagonal().add_(len(inner) * damping)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        raise InputError(
            f"damping {damping:g} is too small for the precision of {len(inner)} gradients, or one is not finite: "
            "raise it, or take the model in float64"
        )
    return torch.cholesky_solve(products.double(), factor)


def subtract_and_scale(vectors: Tensor, combined: Tensor, damping: float) -> Tensor:
    """(v - G^T c) / damping, the difference in float64, as the type of v."""
    return ((vectors.double() - combined.double()) / damping).to(vectors.dtype)


def gram(gradients: Tensor) -> Tensor:
    """G G^T, (m, m) float64."""
    total = gradients.new_zeros(len(gradients), len(gradients), dtype=torch.float64)
    add_lower(total, gradients)
    return mirrored(total)


def add_lower(total: Tensor, gradients: Tensor) -> None:
    """Add G G^T to the lower triangle of `total` (and to some entries above it): half of the multiplications."""
    for columns in gradients.split(_COLUMNS, dim=1):
        for start in range(0, len(columns), _TILE):
            stop = start + _TILE
            total[start:stop, :stop] += columns[start:stop] @ columns[:stop].T


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix of this lower triangle."""
    return lower.tril() + lower.tril(-1).T
