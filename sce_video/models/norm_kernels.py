"""Triton kernels of `norm.FusedNorm`, imported on demand: each reads and writes a tensor at most once.

In channels-last layout a tensor [B, C, ...] is a matrix of `rows` rows and C columns in memory. A program handles tiles of N rows
and W columns, in float32 (float64 for float64). There are no atomics, so results repeat to the bit. `stats` [3, C] holds mean,
biased variance and count of each channel.

| kernel     | reads     | writes              | result                                                                  |
|------------|-----------|---------------------|-------------------------------------------------------------------------|
| statistics | x         | parts [chunks, 3, C] | the statistics of each chunk of rows, by Welford's updates              |
| merge      | parts     | stats               | those of all chunks or ranks (Chan et al., 1979), and the running ones  |
| transform  | x, (residual) | y               | relu((x - mean) / std * weight + bias + residual)                       |
| sums       | dy, x, (y) | parts [chunks, 2, C], (g) | sums of g and of g * normalised x, where g is dy under the ReLU's mask |
| slope      | g, x      | dx                  | the gradient of x                                                       |

With a residual the mask is read from y, and g is written; without one the mask is computed again from x.
"""

# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language import constexpr


@triton.jit
def _place(C, W: constexpr):
    """Return this program's chunk or tile of rows, 64-bit because a batch can pass 2^31 values, and its columns."""
    blocks = (C + W - 1) // W
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * W + tl.arange(0, W)


@triton.jit
def _read(source, row, column, rows, stride, C):
    """Return the values of a tile, 0 outside of the matrix, and whether each is inside."""
    inside = (row < rows)[:, None] & (column < C)[None, :]
    return tl.load(source + row[:, None] * stride + column[None, :], mask=inside, other=0.0), inside


@triton.jit
def _affine(stats, weight, bias, column, C, EPS: constexpr):
    """Return mean, 1 / std, weight and bias of columns, [1, W]."""
    mean = tl.load(stats + column, mask=column < C, other=0.0)
    inverse = 1.0 / tl.sqrt(tl.load(stats + C + column, mask=column < C, other=1.0) + EPS)
    scale, shift = inverse * 0 + 1, inverse * 0
    if weight is not None:
        scale = tl.load(weight + column, mask=column < C, other=0.0).to(mean.dtype)
        shift = tl.load(bias + column, mask=column < C, other=0.0).to(mean.dtype)
    return mean[None, :], inverse[None, :], scale[None, :], shift[None, :]


@triton.jit
def statistics(x, parts, rows, chunk_rows, C, N: constexpr, W: constexpr):
    """Write the statistics of a chunk of rows."""
    wide: constexpr = parts.dtype.element_ty
    chunk, column = _place(C, W)
    mean, square = tl.zeros((N, W), wide), tl.zeros((N, W), wide)
    seen = tl.zeros((1, 1), wide)
    for start in range(0, chunk_rows, N):
        value, inside = _read(x, chunk * chunk_rows + start + tl.arange(0, N), column, rows, C, C)
        # Every row of the tile on its own, so that threads exchange nothing inside the loop.
        seen += 1.0
        away = tl.where(inside, value.to(wide) - mean, 0.0)
        mean += away * (1.0 / seen)
        square += away * (value.to(wide) - mean)
    size = tl.minimum(chunk_rows, rows - chunk * chunk_rows)
    counts = tl.maximum((size - tl.arange(0, N) + N - 1) // N, 0).to(wide)[:, None]
    count = size.to(wide)
    total = tl.sum(mean * counts, 0) / count
    away = mean - total[None, :]
    target = parts + chunk * 3 * C + column
    tl.store(target, total, mask=column < C)
    tl.store(target + C, (tl.sum(square, 0) + tl.sum(away * away * counts, 0)) / count, mask=column < C)
    tl.store(target + 2 * C, total * 0 + count, mask=column < C)


@triton.jit
def merge(parts, stats, running_mean, running_var, momentum, num_parts, C, N: constexpr, W: constexpr):
    """Merge statistics, and let the running ones follow unless they are None."""
    _, column = _place(C, W)
    pivot = tl.load(parts + column, mask=column < C, other=0.0)  # differences to it keep the digits of a large mean
    shift = tl.zeros((N, W), pivot.dtype)
    counts, squares = shift, shift
    for start in range(0, num_parts, N):
        row = start + tl.arange(0, N)
        own = _read(parts + 2 * C, row, column, num_parts, 3 * C, C)[0]
        shift += (_read(parts, row, column, num_parts, 3 * C, C)[0] - pivot[None, :]) * own
        counts += own
    count = tl.maximum(tl.sum(counts, 0), 1.0)
    mean = pivot + tl.sum(shift, 0) / count
    for start in range(0, num_parts, N):
        row = start + tl.arange(0, N)
        away = _read(parts, row, column, num_parts, 3 * C, C)[0] - mean[None, :]
        own = _read(parts + C, row, column, num_parts, 3 * C, C)[0]
        squares += (own + away * away) * _read(parts + 2 * C, row, column, num_parts, 3 * C, C)[0]
    variance = tl.sum(squares, 0) / count
    tl.store(stats + column, mean, mask=column < C)
    tl.store(stats + C + column, variance, mask=column < C)
    tl.store(stats + 2 * C + column, count, mask=column < C)
    if running_mean is not None:
        old = tl.load(running_mean + column, mask=column < C, other=0.0).to(mean.dtype)
        tl.store(running_mean + column, old + momentum * (mean - old), mask=column < C)
        old = tl.load(running_var + column, mask=column < C, other=0.0).to(mean.dtype)
        tl.store(running_var + column, old + momentum * (variance * (count / (count - 1.0)) - old), mask=column < C)


@triton.jit
def transform(x, residual, y, stats, weight, bias, rows, C, EPS: constexpr, RELU: constexpr, N: constexpr, W: constexpr):
    """Normalise, add the residual unless it is None, and apply the ReLU."""
    tile, column = _place(C, W)
    row = tile * N + tl.arange(0, N)
    mean, inverse, scale, shift = _affine(stats, weight, bias, column, C, EPS)
    value, inside = _read(x, row, column, rows, C, C)
    value = (value.to(mean.dtype) - mean) * inverse * scale + shift
    if residual is not None:
        value += _read(residual, row, column, rows, C, C)[0].to(mean.dtype)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # keeps NaN, as torch's does
    tl.store(y + row[:, None] * C + column[None, :], value, mask=inside)


@triton.jit
def sums(
    dy, x, y, g, stats, weight, bias, parts, rows, chunk_rows, C, EPS: constexpr, RELU: constexpr, N: constexpr, W: constexpr
):
    """Write a chunk's sums; unless y is None, the ReLU's mask comes from it and g is written."""
    chunk, column = _place(C, W)
    mean, inverse, scale, shift = _affine(stats, weight, bias, column, C, EPS)
    plain = tl.zeros((N, W), parts.dtype.element_ty)
    weighted = plain
    for start in range(0, chunk_rows, N):
        row = chunk * chunk_rows + start + tl.arange(0, N)
        gradient, inside = _read(dy, row, column, rows, C, C)
        gradient = gradient.to(mean.dtype)
        normalised = (_read(x, row, column, rows, C, C)[0].to(mean.dtype) - mean) * inverse
        if y is not None:
            gradient = tl.where(_read(y, row, column, rows, C, C)[0] > 0, gradient, 0.0)
            tl.store(g + row[:, None] * C + column[None, :], gradient, mask=inside)  # also the residual's gradient
        elif RELU:
            gradient = tl.where(normalised * scale + shift > 0, gradient, 0.0)
        plain += gradient
        weighted += gradient * normalised
    target = parts + chunk * 2 * C + column
    tl.store(target, tl.sum(plain, 0), mask=column < C)
    tl.store(target + C, tl.sum(weighted, 0), mask=column < C)


@triton.jit
def slope(g, x, dx, stats, weight, bias, totals, rows, C, EPS: constexpr, RELU: constexpr, N: constexpr, W: constexpr):
    """Write the gradient of x; totals: the sums over all rows, or None where the statistics do not depend on x."""
    tile, column = _place(C, W)
    row = tile * N + tl.arange(0, N)
    mean, inverse, scale, shift = _affine(stats, weight, bias, column, C, EPS)
    gradient, inside = _read(g, row, column, rows, C, C)
    gradient = gradient.to(mean.dtype)
    normalised = (_read(x, row, column, rows, C, C)[0].to(mean.dtype) - mean) * inverse
    if RELU:
        gradient = tl.where(normalised * scale + shift > 0, gradient, 0.0)
    if totals is not None:
        count = tl.load(stats + 2 * C + column, mask=column < C, other=1.0)
        plain = tl.load(totals + column, mask=column < C, other=0.0) / count
        weighted = tl.load(totals + C + column, mask=column < C, other=0.0) / count
        gradient = gradient - plain[None, :] - normalised * weighted[None, :]
    tl.store(dx + row[:, None] * C + column[None, :], gradient * inverse * scale, mask=inside)
