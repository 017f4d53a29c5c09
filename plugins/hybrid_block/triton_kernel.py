"""What the hybrid block does between its matrix products, for NVIDIA GPUs, in Triton: one kernel a step.

Which kernel is for which step, and what a program of it owns, is told in `gpu_kernels`; what a step computes,
in its function (`onnx_functions`). Maps are channels last; the elements of a program lie one after the other
in memory, so that neighbouring threads read neighbouring values. Layer norms walk a position's channels
``LANES`` at a time, each warp a row. Everything is computed in float32, whatever the maps are, and nothing is
added by atomics: the result is deterministic.
"""

from __future__ import annotations

# A kernel is a program in Triton's language: arguments have no Python types, and tuples are not unpacked.
# ruff: noqa: RUF005
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
import triton
import triton.language as tl

from . import LAYER_NORM_EPSILON

LOG2_E = tl.constexpr(1.4426950408889634)
SQRT_HALF = tl.constexpr(0.7071067811865476)
EPSILON = tl.constexpr(LAYER_NORM_EPSILON)
TAPS = tl.constexpr(9)
CENTRE = tl.constexpr(4)
# One machine code for every size, as of the scan's kernels.
SIZES = ("height", "width", "channels", "stride", "groups", "convolved", "lines", "positions")


@triton.jit
def _sigmoid(value):
    """1 / (1 + exp(-value)); far below zero the exponential is infinite and this zero."""
    return 1.0 / (1.0 + tl.exp2(value * -LOG2_E))


@triton.jit
def _silu(value):
    return value * _sigmoid(value)


@triton.jit
def _relu(value):
    """What is no number stays none, as in ONNX."""
    return tl.where(value < 0.0, 0.0, value)


@triton.jit
def _gelu(value):
    return 0.5 * value * (1.0 + tl.erf(value * SQRT_HALF))


@triton.jit
def _load(ptr, offset, mask):
    return tl.load(ptr + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _quotient(number, divisor):
    """A quotient of numbers that are not negative, in two thirds of a signed division's instructions."""
    return (number.to(tl.uint32) // divisor.to(tl.uint32)).to(tl.int32)


@triton.jit
def _walks(owned, height, width, lines, LANES: tl.constexpr):
    """What each lane walks: which of the ``owned`` of a position, a column of the map, and its first line.

    Walks are ``lines`` long. Neighbouring lanes have neighbours of a position, then neighbouring columns;
    lanes that have nothing are masked.
    """
    lane = tl.arange(0, LANES)
    span = tl.minimum(owned, LANES)
    row = _quotient(lane, span)
    rows = _quotient(tl.full([], LANES, tl.int32), span)
    own = tl.program_id(2) * LANES + lane - row * span
    walk = tl.program_id(0) * rows + row
    band = _quotient(walk, width)
    first = band * lines
    return own, walk - band * width, first, (row < rows) & (own < owned) & (first < height)


@triton.jit
def _walks_of_pairs(channels, height, width, lines, LANES: tl.constexpr):
    """Walks of pairs of channels: the pair, the column, the first line and the mask, all (LANES, 1)."""
    pair, column, first, mask = _walks(channels // 2, height, width, lines, LANES)
    return pair[:, None], column[:, None], first[:, None], mask[:, None]


@triton.jit
def _of_pairs(pair, PER_PAIR: tl.constexpr):
    """The channels of pairs, (LANES, 2), or so many for each pair."""
    return pair * PER_PAIR + tl.arange(0, PER_PAIR)[None, :]


@triton.jit
def _even(channels):
    """Lets Triton see that a number is even, so that pairs are one load."""
    return channels // 2 * 2


@triton.jit
def _line(x_ptr, line, column, mask, height, width, stride, channel):
    """A line's values before, at and behind a column, zero where the map has none, and whether it has them.

    Positions of the map lie ``stride`` channels apart.
    """
    there = mask & (line >= 0) & (line < height)
    before = there & (column > 0)
    behind = there & (column + 1 < width)
    at = (line * width + column) * stride + channel
    x_before = _load(x_ptr, at - stride, before)
    x = _load(x_ptr, at, there)
    x_behind = _load(x_ptr, at + stride, behind)
    return (x_before, x, x_behind), (before, there, behind)


@triton.jit
def _taps(weight_ptr, channel, mask):
    """The weights of a 3x3 convolution, tap by tap."""
    weights = ()
    for tap in tl.static_range(TAPS):
        weights = weights + (_load(weight_ptr, channel * TAPS + tap, mask),)
    return weights


@triton.jit
def _added(total, values, weights, FIRST: tl.constexpr):
    """``total`` and a line's part of a convolution, whose first tap there is ``FIRST``."""
    for i in tl.static_range(3):
        total += values[i] * weights[FIRST + i]
    return total


@triton.jit
def _stepped(above, here, bias, values, weights):
    """One line further: the sum of the position above it, now whole, and those of the two that are not."""
    return (
        _added(above, values, weights, 6),
        _added(here, values, weights, 3),
        _added(bias, values, weights, 0),
    )


@triton.jit(do_not_specialize=SIZES)
def local_depthwise(
    x_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, y_ptr,
    height, width, channels, stride, lines, LANES: tl.constexpr,
):  # fmt: skip
    """relu(conv(x * scale + shift)) of x's first channels; the border is zero after the scale."""
    pair, column, first, mask = _walks_of_pairs(channels, height, width, lines, LANES)
    channel = _of_pairs(pair, 2)
    scale = _load(scale_ptr, channel, mask)
    shift = _load(shift_ptr, channel, mask)
    bias = _load(bias_ptr, channel, mask)
    weights = _taps(weight_ptr, channel, mask)
    image = tl.program_id(1).to(tl.int64) * (height * width)
    x_ptr += image * _even(stride)
    y_ptr += image * _even(channels)
    above = bias
    here = bias
    for i in range(lines + 2):
        line = first + i - 1
        x, there = _line(x_ptr, line, column, mask, height, width, _even(stride), channel)
        normed = ()
        for tap in tl.static_range(3):
            normed = normed + (tl.where(there[tap], x[tap] * scale + shift, 0.0),)
        total, above, here = _stepped(above, here, bias, normed, weights)
        offset = ((line - 1) * width + column) * _even(channels) + channel
        tl.store(y_ptr + offset, _relu(total), mask=mask & (i > 1) & (line <= height))


@triton.jit(do_not_specialize=SIZES)
def local_expansion(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    height, width, channels, lines, LANES: tl.constexpr,
):  # fmt: skip
    """relu(conv(x)), two of y's channels from each of x's ``channels``."""
    pair, column, first, mask = _walks_of_pairs(channels, height, width, lines, LANES)
    channel = _of_pairs(pair, 2)
    even_bias = _load(bias_ptr, 2 * channel, mask)
    odd_bias = _load(bias_ptr, 2 * channel + 1, mask)
    even_weights = _taps(weight_ptr, 2 * channel, mask)
    odd_weights = _taps(weight_ptr, 2 * channel + 1, mask)
    image = tl.program_id(1).to(tl.int64) * (height * width)
    x_ptr += image * _even(channels)
    y_ptr += image * _even(channels) * 2
    even_above = even_bias
    even_here = even_bias
    odd_above = odd_bias
    odd_here = odd_bias
    for i in range(lines + 2):
        line = first + i - 1
        x, _ = _line(x_ptr, line, column, mask, height, width, _even(channels), channel)
        even, even_above, even_here = _stepped(even_above, even_here, even_bias, x, even_weights)
        odd, odd_above, odd_here = _stepped(odd_above, odd_here, odd_bias, x, odd_weights)
        both = tl.reshape(tl.join(_relu(even), _relu(odd)), (LANES, 4))
        offset = ((line - 1) * width + column) * (_even(channels) * 2) + _of_pairs(pair, 4)
        tl.store(y_ptr + offset, both, mask=mask & (i > 1) & (line <= height))


@triton.jit(do_not_specialize=SIZES)
def gated_convolution(
    x_ptr, weight_ptr, bias_ptr, gate_ptr, y_ptr,
    height, width, channels, lines, LANES: tl.constexpr,
):  # fmt: skip
    """silu(conv(x's first half of channels)), and its second half by itself."""
    pair, column, first, mask = _walks_of_pairs(channels, height, width, lines, LANES)
    channel = _of_pairs(pair, 2)
    bias = _load(bias_ptr, channel, mask)
    weights = _taps(weight_ptr, channel, mask)
    image = tl.program_id(1).to(tl.int64) * (height * width) * _even(channels)
    x_ptr += 2 * image
    gate_ptr += image
    y_ptr += image
    above = bias
    here = bias
    for i in range(lines + 2):
        line = first + i - 1
        x, _ = _line(x_ptr, line, column, mask, height, width, 2 * _even(channels), channel)
        total, above, here = _stepped(above, here, bias, x, weights)
        written = mask & (i > 1) & (line <= height)
        row = ((line - 1) * width + column) * _even(channels)
        tl.store(y_ptr + row + channel, _silu(total), mask=written)
        gate = _load(x_ptr, 2 * row + _even(channels) + channel, written)
        tl.store(gate_ptr + row + channel, gate, mask=written)


@triton.jit
def _merge(y_ptr, tokens_ptr, value, scale, group, within, position, mask, length, channels, model):
    """A group's channels where all groups' stand side by side, plus the scaled tokens."""
    token = _load(tokens_ptr, (group * length + position) * model + within, mask)
    tl.store(y_ptr + position * channels + group * model + within, value + token * scale, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def merged_groups(
    x_ptr, tokens_ptr, x_bias_ptr, weight_ptr, bias_ptr, scale_ptr, y_ptr,
    height, width, channels, groups, convolved, lines, LANES: tl.constexpr,
):  # fmt: skip
    """The groups side by side: activated, convolved, shuffled, H and W swapped, plus the scaled tokens.

    ``channels`` are all groups'; the first ``convolved`` of each group's go through the convolution. The map
    that is read is (width, height), and so is the one that is walked.
    """
    length = height * width
    model = _quotient(channels, groups)
    half = model // 2
    scale = tl.load(scale_ptr).to(tl.float32)
    image = tl.program_id(1).to(tl.int64) * length * channels
    x_ptr += image
    tokens_ptr += image
    y_ptr += image

    passed, column, first, mask = _walks(channels, width, height, lines, LANES)
    group = _quotient(passed, model)
    within = passed - group * model
    odd = _quotient(within, half)
    source = (within - odd * half) * 2 + odd
    mask = mask & (source >= convolved)
    x_bias = _load(x_bias_ptr, source, mask)
    for i in range(lines):
        line = first + i
        there = mask & (line < width)
        x = _load(x_ptr, (group * length + line * height + column) * model + source, there)
        value = _silu(x + x_bias)
        _merge(
            y_ptr,
            tokens_ptr,
            value,
            scale,
            group,
            within,
            column * width + line,
            there,
            length,
            channels,
            model,
        )

    through, column, first, mask = _walks(groups * convolved, width, height, lines, LANES)
    group = _quotient(through, convolved)
    source = through - group * convolved
    within = source % 2 * half + source // 2
    x_bias = _load(x_bias_ptr, source, mask)
    bias = _load(bias_ptr, source, mask)
    weights = _taps(weight_ptr, source, mask)
    above = bias
    here = bias
    for i in range(lines + 2):
        line = first + i - 1
        x, there = _line(x_ptr, line, column, mask, width, height, model, group * length * model + source)
        activated = ()
        for tap in tl.static_range(3):
            activated = activated + (tl.where(there[tap], _silu(x[tap] + x_bias), 0.0),)
        total, above, here = _stepped(above, here, bias, activated, weights)
        value = _silu(total)
        position = column * width + line - 1
        written = mask & (i > 1) & (line <= width)
        _merge(y_ptr, tokens_ptr, value, scale, group, within, position, written, length, channels, model)


@triton.jit(do_not_specialize=SIZES)
def weighted_branches(
    local_ptr, scanned_ptr, weight_ptr, bias_ptr, y_ptr,
    height, width, channels, lines, LANES: tl.constexpr,
):  # fmt: skip
    """Each branch, of ``channels``, weighted by the convolution of the other; both, shuffled by fours."""
    channel, column, first, mask = _walks(channels, height, width, lines, LANES)
    bias = _load(bias_ptr, channel, mask)
    weights = _taps(weight_ptr, channel, mask)
    image = tl.program_id(1).to(tl.int64) * (height * width) * channels
    local_ptr += image
    scanned_ptr += image
    y_ptr += 2 * image
    half = channels // 2
    behind = channels + channel
    scanned_place = channel % 4 * half + channel // 4
    local_place = behind % 4 * half + behind // 4
    of_local_above = bias
    of_local_here = bias
    of_scanned_above = bias
    of_scanned_here = bias
    local = tl.zeros([LANES], tl.float32)
    scanned = tl.zeros([LANES], tl.float32)
    for i in range(lines + 2):
        line = first + i - 1
        next_local, _ = _line(local_ptr, line, column, mask, height, width, channels, channel)
        next_scanned, _ = _line(scanned_ptr, line, column, mask, height, width, channels, channel)
        of_local, of_local_above, of_local_here = _stepped(
            of_local_above, of_local_here, bias, next_local, weights
        )
        of_scanned, of_scanned_above, of_scanned_here = _stepped(
            of_scanned_above, of_scanned_here, bias, next_scanned, weights
        )
        written = mask & (i > 1) & (line <= height)
        place = y_ptr + ((line - 1) * width + column) * (2 * channels)
        tl.store(place + scanned_place, _sigmoid(_relu(of_local)) * scanned, mask=written)
        tl.store(place + local_place, _sigmoid(_gelu(of_scanned)) * local, mask=written)
        local = next_local[1]
        scanned = next_scanned[1]


@triton.jit
def _total(x_ptr, count, channel, channels, ROWS: tl.constexpr, LANES: tl.constexpr):
    """The sum of ``count`` rows of channels, (LANES)."""
    total = tl.zeros([ROWS, LANES], tl.float32)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & (channel < channels)[None, :]
        total += _load(x_ptr, row[:, None] * channels + channel[None, :], mask)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=SIZES)
def row_sums(
    x_ptr, sums_ptr,
    height, width, channels, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The sum over each line of a map, (batch, H, channels) float32."""
    line = tl.program_id(2).to(tl.int64) * height + tl.program_id(0)
    channel = tl.program_id(1) * LANES + tl.arange(0, LANES)
    x_ptr += line * width * channels
    total = _total(x_ptr, width, channel, channels, ROWS, LANES)
    tl.store(sums_ptr + line * channels + channel, total, mask=channel < channels)


@triton.jit(do_not_specialize=SIZES)
def channel_attention(
    sums_ptr, weight_ptr, y_ptr,
    height, width, channels, POSITIONS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """y times the attention of its channels, in y's place."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * LANES + tl.arange(0, LANES)
    present = channel < channels
    total = _total(sums_ptr + image * height * channels, height, channel, channels, ROWS, LANES)
    length = height * width
    attention = _sigmoid(total / length * _load(weight_ptr, channel, present))
    y_ptr += image * length * channels
    for first in range(0, POSITIONS, ROWS):
        position = tl.program_id(0) * POSITIONS + first + tl.arange(0, ROWS)
        mask = (position < length)[:, None] & present[None, :]
        offset = position[:, None] * channels + channel[None, :]
        tl.store(y_ptr + offset, _load(y_ptr, offset, mask) * attention[None, :], mask=mask)


@triton.jit
def _moments(x_ptr, row, present, channels, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Mean and reciprocal deviation of rows: the channels at the offsets ``row``."""
    total = tl.zeros([ROWS, LANES], tl.float32)
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        total += _load(x_ptr, row[:, None] + channel[None, :], mask)
    mean = tl.sum(total, axis=1) / channels
    squares = tl.zeros([ROWS, LANES], tl.float32)
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        off = tl.where(mask, _load(x_ptr, row[:, None] + channel[None, :], mask) - mean[:, None], 0.0)
        squares += off * off
    return mean, tl.rsqrt(tl.sum(squares, axis=1) / channels + EPSILON)


@triton.jit
def _normed(x, mean, scale, channel, weight_ptr, bias_ptr, channels):
    weight = _load(weight_ptr, channel, channel < channels)
    bias = _load(bias_ptr, channel, channel < channels)
    return (x - mean[:, None]) * scale[:, None] * weight[None, :] + bias[None, :]


@triton.jit
def _rows(positions, ROWS: tl.constexpr):
    """The rows of a program, and which of them there are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return row, row < positions


@triton.jit(do_not_specialize=SIZES)
def grouped_norm(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    positions, channels, stride, groups, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Layer norm of x's last channels; groups of them become maps of their own."""
    image = tl.program_id(1).to(tl.int64)
    row, present = _rows(positions, ROWS)
    channels = _even(channels)
    stride = _even(stride)
    x_ptr += image * positions * stride + stride - channels
    mean, scale = _moments(x_ptr, row * stride, present, channels, ROWS, LANES)
    model = channels // groups
    y_ptr += image * positions * channels
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        x = _load(x_ptr, row[:, None] * stride + channel[None, :], mask)
        normed = _normed(x, mean, scale, channel, weight_ptr, bias_ptr, channels)
        group = _quotient(channel, model)
        place = (group * positions)[None, :] + row[:, None]
        offset = place * model + (channel - group * model)[None, :]
        offset = tl.max_contiguous(tl.multiple_of(offset, (1, 2)), (1, 2))  # both of a pair are of one group
        tl.store(y_ptr + offset, normed, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gated_norm(
    x_ptr, gate_ptr, weight_ptr, bias_ptr, y_ptr,
    positions, channels, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Layer norm of x, times silu(gate)."""
    row, present = _rows(positions, ROWS)
    channels = _even(channels)
    before = tl.program_id(1).to(tl.int64) * positions * channels
    x_ptr += before
    gate_ptr += before
    mean, scale = _moments(x_ptr, row * channels, present, channels, ROWS, LANES)
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        offset = row[:, None] * channels + channel[None, :]
        x = _load(x_ptr, offset, mask)
        normed = _normed(x, mean, scale, channel, weight_ptr, bias_ptr, channels)
        tl.store(y_ptr + before + offset, normed * _silu(_load(gate_ptr, offset, mask)), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def shuffled_norm(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    positions, channels, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Layer norm of x; its pairs of channels become two halves."""
    row, present = _rows(positions, ROWS)
    channels = _even(channels)
    before = tl.program_id(1).to(tl.int64) * positions * channels
    x_ptr += before
    mean, scale = _moments(x_ptr, row * channels, present, channels, ROWS, LANES)
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        x = _load(x_ptr, row[:, None] * channels + channel[None, :], mask)
        normed = _normed(x, mean, scale, channel, weight_ptr, bias_ptr, channels)
        even, odd = tl.split(tl.reshape(normed, (ROWS, LANES // 2, 2)))
        pair = first // 2 + tl.arange(0, LANES // 2)
        place = y_ptr + before + row[:, None] * channels + pair[None, :]
        mask = present[:, None] & (2 * pair < channels)[None, :]
        tl.store(place, even, mask=mask)
        tl.store(place + channels // 2, odd, mask=mask)
