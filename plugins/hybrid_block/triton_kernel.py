"""What the hybrid block does between its matrix products, for NVIDIA GPUs, in Triton: one kernel a step.

Which kernel is for which step, and what a program of it owns, is told in `gpu_kernels`; what a step computes,
in its function (`onnx_functions`). Maps are channels last; the elements of a program lie one after the other
in memory, so that neighbouring threads read neighbouring values. Layer norms walk a position's channels
``LANES`` at a time, each warp a row. Everything is computed in float32, whatever the maps are, and nothing is
added by atomics: the result is deterministic.
"""

from __future__ import annotations

# A kernel is a program in Triton's language, whose arguments have no Python types.
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
SIZES = ("height", "width", "channels", "stride", "groups", "convolved", "multiplier", "positions")


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
def _elements(channels, ELEMENTS: tl.constexpr):
    """The image of a program, and the positions and channels of its elements."""
    element = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    position = element // channels
    return tl.program_id(1).to(tl.int64), position, element - position * channels


@triton.jit
def _neighbour(position, height, width, tap):
    """The position that a tap of a 3x3 convolution reads, and whether the map has it."""
    row = position // width + (tap // 3 - 1)
    column = position % width + (tap % 3 - 1)
    return row * width + column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _convolved(x_ptr, weight_ptr, bias_ptr, position, channel, source, mask, height, width, stride):
    """A depthwise 3x3 convolution of x's channels ``source``; its positions lie ``stride`` apart."""
    total = _load(bias_ptr, channel, mask)
    for tap in tl.static_range(TAPS):
        neighbour, there = _neighbour(position, height, width, tap)
        x = _load(x_ptr, neighbour * stride + source, mask & there)
        total += x * _load(weight_ptr, channel * TAPS + tap, mask)
    return total


@triton.jit(do_not_specialize=SIZES)
def local_depthwise(
    x_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, y_ptr,
    height, width, channels, stride, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """relu(conv(x * scale + shift)) of x's first channels; the border is zero after the scale."""
    image, position, channel = _elements(channels, ELEMENTS)
    mask = position < height * width
    x_ptr += image * height * width * stride
    scale = _load(scale_ptr, channel, mask)
    shift = _load(shift_ptr, channel, mask)
    total = _load(bias_ptr, channel, mask)
    for tap in tl.static_range(TAPS):
        neighbour, there = _neighbour(position, height, width, tap)
        x = _load(x_ptr, neighbour * stride + channel, mask & there)
        normed = tl.where(there, x * scale + shift, 0.0)
        total += normed * _load(weight_ptr, channel * TAPS + tap, mask)
    y_ptr += image * height * width * channels + position * channels + channel
    tl.store(y_ptr, _relu(total), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def local_expansion(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    height, width, channels, multiplier, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """relu(conv(x)), ``multiplier`` of y's channels from each of x's."""
    image, position, channel = _elements(channels, ELEMENTS)
    mask = position < height * width
    stride = channels // multiplier
    x_ptr += image * height * width * stride
    source = channel // multiplier
    total = _convolved(x_ptr, weight_ptr, bias_ptr, position, channel, source, mask, height, width, stride)
    y_ptr += image * height * width * channels + position * channels + channel
    tl.store(y_ptr, _relu(total), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gated_convolution(
    x_ptr, weight_ptr, bias_ptr, gate_ptr, y_ptr,
    height, width, channels, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """silu(conv(x's first half of channels)), and its second half by itself."""
    image, position, channel = _elements(channels, ELEMENTS)
    mask = position < height * width
    stride = 2 * channels
    x_ptr += image * height * width * stride
    total = _convolved(x_ptr, weight_ptr, bias_ptr, position, channel, channel, mask, height, width, stride)
    offset = image * height * width * channels + position * channels + channel
    tl.store(y_ptr + offset, _silu(total), mask=mask)
    tl.store(gate_ptr + offset, _load(x_ptr, position * stride + channels + channel, mask), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def merged_groups(
    x_ptr, tokens_ptr, x_bias_ptr, weight_ptr, bias_ptr, scale_ptr, y_ptr,
    height, width, channels, groups, convolved, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The groups side by side: activated, convolved, shuffled, H and W swapped, plus the scaled tokens.

    ``channels`` are all groups'; the first ``convolved`` of each group's go through the convolution.
    """
    image, position, channel = _elements(channels, ELEMENTS)
    mask = position < height * width
    model = channels // groups
    group = channel // model
    within = channel - group * model
    half = model // 2
    source = within % half * 2 + within // half
    place = position % width * height + position // width  # the map that is read is (width, height)
    first = (image * groups + group) * height * width
    x_ptr += first * model
    x_bias = _load(x_bias_ptr, source, mask)
    here = _silu(_load(x_ptr, place * model + source, mask) + x_bias)
    through = mask & (source < convolved)
    total = _load(bias_ptr, source, through)
    for tap in tl.static_range(TAPS):
        weight = _load(weight_ptr, source * TAPS + tap, through)
        if tap == CENTRE:
            total += here * weight
        else:
            neighbour, there = _neighbour(place, width, height, tap)
            x = _load(x_ptr, neighbour * model + source, through & there)
            total += tl.where(there, _silu(x + x_bias), 0.0) * weight
    token = _load(tokens_ptr, (first + position) * model + within, mask)
    merged = tl.where(source < convolved, _silu(total), here) + token * tl.load(scale_ptr).to(tl.float32)
    y_ptr += image * height * width * channels + position * channels + channel
    tl.store(y_ptr, merged, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def weighted_branches(
    local_ptr, scanned_ptr, weight_ptr, bias_ptr, y_ptr,
    height, width, channels, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Each branch, of ``channels``, weighted by the convolution of the other; both, shuffled by fours."""
    image, position, channel = _elements(channels, ELEMENTS)
    mask = position < height * width
    first = image * height * width * channels
    local_ptr += first
    scanned_ptr += first
    bias = _load(bias_ptr, channel, mask)
    of_local = bias
    of_scanned = bias
    for tap in tl.static_range(TAPS):
        neighbour, there = _neighbour(position, height, width, tap)
        weight = _load(weight_ptr, channel * TAPS + tap, mask)
        offset = neighbour * channels + channel
        of_local += _load(local_ptr, offset, mask & there) * weight
        of_scanned += _load(scanned_ptr, offset, mask & there) * weight
    offset = position * channels + channel
    scanned = _sigmoid(_relu(of_local)) * _load(scanned_ptr, offset, mask)
    local = _sigmoid(_gelu(of_scanned)) * _load(local_ptr, offset, mask)
    y_ptr += 2 * first + position * 2 * channels
    half = channels // 2
    behind = channels + channel
    tl.store(y_ptr + channel % 4 * half + channel // 4, scanned, mask=mask)
    tl.store(y_ptr + behind % 4 * half + behind // 4, local, mask=mask)


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
    x_ptr += image * positions * stride + stride - channels
    mean, scale = _moments(x_ptr, row * stride, present, channels, ROWS, LANES)
    model = channels // groups
    y_ptr += image * positions * channels
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        x = _load(x_ptr, row[:, None] * stride + channel[None, :], mask)
        normed = _normed(x, mean, scale, channel, weight_ptr, bias_ptr, channels)
        group = channel // model
        place = (group * positions)[None, :] + row[:, None]
        tl.store(y_ptr + place * model + (channel - group * model)[None, :], normed, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def gated_norm(
    x_ptr, gate_ptr, weight_ptr, bias_ptr, y_ptr,
    positions, channels, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Layer norm of x, times silu(gate)."""
    row, present = _rows(positions, ROWS)
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
    before = tl.program_id(1).to(tl.int64) * positions * channels
    x_ptr += before
    mean, scale = _moments(x_ptr, row * channels, present, channels, ROWS, LANES)
    for first in range(0, channels, LANES):
        channel = first + tl.arange(0, LANES)
        mask = present[:, None] & (channel < channels)[None, :]
        x = _load(x_ptr, row[:, None] * channels + channel[None, :], mask)
        normed = _normed(x, mean, scale, channel, weight_ptr, bias_ptr, channels)
        place = channel % 2 * (channels // 2) + channel // 2
        tl.store(y_ptr + before + row[:, None] * channels + place[None, :], normed, mask=mask)
