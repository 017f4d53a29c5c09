"""The kernels of the 2D selective scan for NVIDIA GPUs, in Triton: all directions at once.

How the work is cut into programs, chunks and launches is told in `gpu_launch`; `triton_scan` compiles and
launches what stands here. Dims as in the package: batch, H W map, D channels, N states, K = 4 directions;
in the kernels ``STATES`` is N, ``BLOCK`` the channels of one program, ``STEPS`` the positions of one tile.
`chunk_state`, `scan` and `sum_directions` are the scan; `tile_states` and `scan_backward` its gradients.

The state of a program, (N, BLOCK) float32, never leaves its registers. A tile of step sizes, inputs, B and
C is loaded while the tile before it is computed; softplus runs once per element on the tile as it was
loaded, and only then are its columns dealt out, one per step of the recurrence. What is narrower than
float32 is widened where a turn of the loop ends, and carried to the next: Triton before 3.9 moves a
conversion that stands before the dealing-out behind it, 3.6 with softplus, and each lane would compute
copies of its own. Maps are channels last, so neighbouring lanes read neighbouring channels in whichever
direction the positions are walked.
"""

from __future__ import annotations

# A kernel is a program in Triton's language, whose arguments have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
import triton
import triton.language as tl

DIRECTIONS = tl.constexpr(4)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Triton would compile a kernel again for sizes that are 1 or multiples of 16. In the scan that saves 2 % of
# the instructions and takes 124 registers in place of 106, and in the gradients nothing; this way the code
# that PyTorch launches is that of engines and bundles, bit for bit, compiled once for a type.
SIZES = ("height", "width", "channels", "lines_per_chunk", "elements")


@triton.jit
def _softplus(value):
    """log(1 + exp(value)), to float32's last digits also where it is tiny.

    log(1 + w) = 2 artanh(w / (2 + w)) with w = exp(-|value|) in (0, 1]; the polynomial is artanh's
    minimax fit on [0, 1/3], relative error 4e-9. (``log2(1 + w)`` would lose all digits of a small w.)
    """
    w = tl.exp2(tl.abs(value) * -LOG2_E)
    s = w / (2.0 + w)
    z = s * s
    series = 2.0 + z * (0.66666315 + z * (0.4002491 + z * (0.27960605 + z * 0.28178327)))
    return tl.maximum(value, 0.0) + s * series


@triton.jit
def _sigmoid(value):
    """1 / (1 + exp(-value)), the slope of softplus; relative error of a few float32 digits on either side."""
    w = tl.exp2(tl.abs(value) * -LOG2_E)
    near_one = 1.0 / (1.0 + w)
    return tl.where(value >= 0.0, near_one, w * near_one)


@triton.jit
def _columns(tile, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """The columns of a (ROWS, STEPS) tile as a tuple of STEPS tensors (ROWS,)."""
    even, odd = tl.split(tl.reshape(tile, [ROWS, STEPS // 2, 2]))  # (ROWS, STEPS / 2) each
    if STEPS == 2:
        columns = (tl.reshape(even, [ROWS]), tl.reshape(odd, [ROWS]))
    elif STEPS == 4:
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        columns = (c0, c1, c2, c3)
    else:
        c04, c26 = tl.split(tl.reshape(even, [ROWS, 2, 2]))
        c15, c37 = tl.split(tl.reshape(odd, [ROWS, 2, 2]))
        c0, c4 = tl.split(c04)
        c2, c6 = tl.split(c26)
        c1, c5 = tl.split(c15)
        c3, c7 = tl.split(c37)
        columns = (c0, c1, c2, c3, c4, c5, c6, c7)
    return columns


@triton.jit
def _tile(columns, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """The inverse of `_columns`: a tuple of STEPS tensors (ROWS,) as a (ROWS, STEPS) tile."""
    if STEPS == 2:
        tile = tl.join(columns[0], columns[1])
    elif STEPS == 4:
        tile = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))
    else:
        even = tl.join(tl.join(columns[0], columns[4]), tl.join(columns[2], columns[6]))
        odd = tl.join(tl.join(columns[1], columns[5]), tl.join(columns[3], columns[7]))
        tile = tl.join(tl.reshape(even, [ROWS, 4]), tl.reshape(odd, [ROWS, 4]))
    return tl.reshape(tile, [ROWS, STEPS])


@triton.jit
def _walk(direction, height, width):
    """How a direction walks the map: lines, positions per line, and the raster distance between either."""
    by_rows = direction % 2 == 0
    lines = tl.where(by_rows, height, width)
    length = tl.where(by_rows, width, height)
    return lines, length, tl.where(by_rows, width, 1), tl.where(by_rows, 1, width)


@triton.jit
def _tile_positions(direction, line, first, height, width, STEPS: tl.constexpr):
    """Raster positions of the tile that starts at step ``first`` of ``line``, and which of them exist."""
    lines, length, line_stride, step_stride = _walk(direction, height, width)
    step = first + tl.arange(0, STEPS)
    inside = step < tl.where(line < lines, length, 0)
    backwards = direction >= 2
    line = tl.where(backwards, lines - 1 - line, line)
    step = tl.where(backwards, length - 1 - step, step)
    return line * line_stride + step * step_stride, inside


@triton.jit
def _next_tile(line, first, length, STEPS: tl.constexpr):
    """The tile after this one, on the next line when this line is done."""
    first += STEPS
    done = first >= length
    return tl.where(done, line + 1, line), tl.where(done, 0, first)


@triton.jit
def _tile_before(line, first, last_first, STEPS: tl.constexpr):
    """The tile before this one, at the end of the line before when this one is a line's first.

    Before the first tile of all comes the end of its own line, which exists to be loaded in vain.
    """
    first -= STEPS
    done = first < 0
    return tl.where(done, tl.maximum(line - 1, 0), line), tl.where(done, last_first, first)


@triton.jit
def _load(ptr, position, distance, lane, mask):
    """The tile (lanes, STEPS) at ``position`` of a channels-last map, positions ``distance`` apart."""
    return tl.load(ptr + position[None, :] * distance + lane[:, None], mask=mask, other=0.0)


@triton.jit
def _load_inputs(
    x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES: tl.constexpr
):
    """A tile of x and raw step sizes (BLOCK, STEPS) and of B (STATES, STEPS); zero where there is none."""
    x = _load(x_ptr, position, channels, channel, present)
    raw = _load(delta_ptr, position, DIRECTIONS * channels, channel, present)
    b = _load(b_ptr, position, DIRECTIONS * STATES, state, inside[None, :])
    return x, raw, b


@triton.jit
def _widened(inputs):
    """What `_load_inputs` loaded, in float32."""
    return inputs[0].to(tl.float32), inputs[1].to(tl.float32), inputs[2].to(tl.float32)


@triton.jit
def _step_sizes(raw, bias, inside):
    """delta' of a tile (BLOCK, STEPS); zero outside, where it leaves the state alone."""
    return tl.where(inside[None, :], _softplus(raw + bias[:, None]), 0.0)


@triton.jit(do_not_specialize=SIZES)
def chunk_state(
    x_ptr, delta_ptr, a_ptr, b_ptr, delta_bias_ptr, state_ptr, decay_ptr,
    height, width, channels, lines_per_chunk,
    STATES: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The state (D, N) in which a chunk ends that starts from zero, and its sum of delta' (D)."""
    chunk, plane = tl.program_id(0), tl.program_id(2)
    direction = plane % DIRECTIONS
    image = (plane // DIRECTIONS).to(tl.int64) * height * width
    x_ptr += image * channels
    delta_ptr += (image * DIRECTIONS + direction) * channels
    b_ptr += (image * DIRECTIONS + direction) * STATES

    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    real = channel < channels
    own = direction * channels + channel
    rate = tl.load(a_ptr + own[None, :] * STATES + state[:, None], mask=real[None, :], other=0.0) * LOG2_E
    bias = tl.load(delta_bias_ptr + own, mask=real, other=0.0)

    lines, length, _, _ = _walk(direction, height, width)
    line = chunk * lines_per_chunk
    last = tl.minimum(line + lines_per_chunk, lines)
    tiles = tl.maximum(last - line, 0) * tl.cdiv(length, STEPS)
    first = 0
    position, inside = _tile_positions(direction, line, first, height, width, STEPS)
    present = real[:, None] & inside[None, :]
    ahead = _load_inputs(x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES)
    x, raw, b = _widened(ahead)

    h = tl.zeros([STATES, BLOCK], dtype=tl.float32)
    decay = tl.zeros([BLOCK, STEPS], dtype=tl.float32)
    for _ in range(tiles):
        delta = _step_sizes(raw, bias, inside)
        decay += delta
        deltas = _columns(delta, BLOCK, STEPS)
        inputs = _columns(delta * x, BLOCK, STEPS)
        bs = _columns(b, STATES, STEPS)

        line, first = _next_tile(line, first, length, STEPS)
        position, inside = _tile_positions(direction, line, first, height, width, STEPS)
        present = real[:, None] & inside[None, :]
        ahead = _load_inputs(
            x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES
        )

        for i in tl.static_range(STEPS):
            h = tl.exp2(deltas[i][None, :] * rate) * h + inputs[i][None, :] * bs[i][:, None]
        x, raw, b = _widened(ahead)

    slot = (plane.to(tl.int64) * (tl.num_programs(0) + 1) + chunk) * channels
    tl.store(state_ptr + (slot + channel)[None, :] * STATES + state[:, None], h, mask=real[None, :])
    tl.store(decay_ptr + slot + channel, tl.sum(decay, axis=1), mask=real)


@triton.jit(do_not_specialize=SIZES)
def scan(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, delta_bias_ptr, state_ptr, decay_ptr, partial_ptr,
    height, width, channels, lines_per_chunk,
    STATES: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One direction's output, skip term included, over one chunk: partial (batch, K, H, W, D) float32."""
    chunk, plane = tl.program_id(0), tl.program_id(2)
    direction = plane % DIRECTIONS
    image = (plane // DIRECTIONS).to(tl.int64) * height * width
    x_ptr += image * channels
    delta_ptr += (image * DIRECTIONS + direction) * channels
    b_ptr += (image * DIRECTIONS + direction) * STATES
    c_ptr += (image * DIRECTIONS + direction) * STATES
    partial_ptr += plane.to(tl.int64) * height * width * channels

    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    real = channel < channels
    own = direction * channels + channel
    rate = tl.load(a_ptr + own[None, :] * STATES + state[:, None], mask=real[None, :], other=0.0) * LOG2_E
    bias = tl.load(delta_bias_ptr + own, mask=real, other=0.0)
    skip = tl.load(d_ptr + own, mask=real, other=0.0)

    h = tl.zeros([STATES, BLOCK], dtype=tl.float32)
    slot = plane.to(tl.int64) * tl.num_programs(0) * channels
    for _ in range(chunk):
        source = state_ptr + (slot + channel)[None, :] * STATES + state[:, None]
        before = tl.load(source, mask=real[None, :], other=0.0)
        decay = tl.load(decay_ptr + slot + channel, mask=real, other=0.0)
        h = tl.exp2(decay[None, :] * rate) * h + before
        slot += channels

    lines, length, _, _ = _walk(direction, height, width)
    line = chunk * lines_per_chunk
    last = tl.minimum(line + lines_per_chunk, lines)
    tiles = tl.maximum(last - line, 0) * tl.cdiv(length, STEPS)
    first = 0
    position, inside = _tile_positions(direction, line, first, height, width, STEPS)
    present = real[:, None] & inside[None, :]
    ahead = _load_inputs(x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES)
    x, raw, b = _widened(ahead)
    c = _load(c_ptr, position, DIRECTIONS * STATES, state, inside[None, :]).to(tl.float32)

    for _ in range(tiles):
        skipped = skip[:, None] * x
        delta = _step_sizes(raw, bias, inside)
        deltas = _columns(delta, BLOCK, STEPS)
        inputs = _columns(delta * x, BLOCK, STEPS)
        bs = _columns(b, STATES, STEPS)
        cs = _columns(c, STATES, STEPS)
        target = partial_ptr + position[None, :] * channels + channel[:, None]
        writes = present

        line, first = _next_tile(line, first, length, STEPS)
        position, inside = _tile_positions(direction, line, first, height, width, STEPS)
        present = real[:, None] & inside[None, :]
        ahead = _load_inputs(
            x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES
        )
        c_ahead = _load(c_ptr, position, DIRECTIONS * STATES, state, inside[None, :])

        outputs = ()
        for i in tl.static_range(STEPS):
            h = tl.exp2(deltas[i][None, :] * rate) * h + inputs[i][None, :] * bs[i][:, None]
            y = tl.sum(h * cs[i][:, None], axis=0)
            outputs = outputs + (y,)  # noqa: RUF005  Triton has no unpacking
        tl.store(target, _tile(outputs, BLOCK, STEPS) + skipped, mask=writes)
        x, raw, b = _widened(ahead)
        c = c_ahead.to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def sum_directions(partial_ptr, y_ptr, elements, ELEMENTS: tl.constexpr):
    """y = the four directions' outputs (batch, K, elements) added in order and rounded to y's type."""
    image = tl.program_id(1).to(tl.int64) * elements
    partial_ptr += image * DIRECTIONS
    offset = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    real = offset < elements
    total = tl.load(partial_ptr + offset, mask=real, other=0.0)
    for _ in tl.static_range(1, DIRECTIONS):
        partial_ptr += elements
        total += tl.load(partial_ptr + offset, mask=real, other=0.0)
    tl.store(y_ptr + image + offset, total.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit
def _rounded(states, channels):
    """The products of (STATES, BLOCK) and (BLOCK), to be summed over channels, which lie in one lane each.

    As plain products they would be fused with the first addition across lanes, which rounds otherwise in
    every lane: the lanes' copies of a sum would differ, and chance would decide which of them is stored.
    """
    return tl.fma(states, tl.broadcast_to(channels[None, :], states.shape), 0.0)


@triton.jit
def _tiles_kept(height, width, STEPS: tl.constexpr):
    """Tiles of the longer of a plane's two walks, for which the workspace has room."""
    return tl.maximum(height * tl.cdiv(width, STEPS), width * tl.cdiv(height, STEPS))


@triton.jit(do_not_specialize=SIZES)
def tile_states(
    x_ptr, delta_ptr, a_ptr, b_ptr, delta_bias_ptr, states_ptr,
    height, width, channels,
    STATES: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The state before every tile of a direction's walk: states (batch, K, tiles, D, N) float32."""
    plane = tl.program_id(0)
    direction = plane % DIRECTIONS
    image = (plane // DIRECTIONS).to(tl.int64) * height * width
    x_ptr += image * channels
    delta_ptr += (image * DIRECTIONS + direction) * channels
    b_ptr += (image * DIRECTIONS + direction) * STATES
    states_ptr += plane.to(tl.int64) * _tiles_kept(height, width, STEPS) * STATES * channels

    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    real = channel < channels
    own = direction * channels + channel
    rate = tl.load(a_ptr + own[None, :] * STATES + state[:, None], mask=real[None, :], other=0.0) * LOG2_E
    bias = tl.load(delta_bias_ptr + own, mask=real, other=0.0)
    slot = channel[None, :] * STATES + state[:, None]

    lines, length, _, _ = _walk(direction, height, width)
    line = 0
    first = 0
    position, inside = _tile_positions(direction, line, first, height, width, STEPS)
    present = real[:, None] & inside[None, :]
    ahead = _load_inputs(x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES)
    x, raw, b = _widened(ahead)

    h = tl.zeros([STATES, BLOCK], dtype=tl.float32)
    for _ in range(lines * tl.cdiv(length, STEPS)):
        tl.store(states_ptr + slot, h, mask=real[None, :])
        states_ptr += STATES * channels
        delta = _step_sizes(raw, bias, inside)
        deltas = _columns(delta, BLOCK, STEPS)
        inputs = _columns(delta * x, BLOCK, STEPS)
        bs = _columns(b, STATES, STEPS)

        line, first = _next_tile(line, first, length, STEPS)
        position, inside = _tile_positions(direction, line, first, height, width, STEPS)
        present = real[:, None] & inside[None, :]
        ahead = _load_inputs(
            x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES
        )

        for i in tl.static_range(STEPS):
            h = tl.exp2(deltas[i][None, :] * rate) * h + inputs[i][None, :] * bs[i][:, None]
        x, raw, b = _widened(ahead)


@triton.jit(do_not_specialize=SIZES)
def scan_backward(
    x_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, d_ptr, delta_bias_ptr, grad_ptr, states_ptr,
    x_partial_ptr, delta_gradient_ptr, a_partial_ptr, b_partial_ptr, c_partial_ptr, d_partial_ptr,
    bias_partial_ptr, height, width, channels,
    STATES: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One direction's gradients, from its last tile to its first; each element has one writer.

    With g the gradient of the state, a = exp(delta' A) and u the input, at every step::

        g      = g_after + grad C               dC      = sum over channels of grad h
        through = g a h_before                  dB      = sum over channels of g delta' u
        du     = delta' <g, B> + D grad         ddelta' = u <g, B> + <through, A>
        dA    += through delta'                 g_after of the step before = g a

    A tile's states are computed again from the one before it (`tile_states`) and stay in registers.
    Written are, in float32, what a direction adds to ``x`` (batch, K, H, W, D), a block of channels to ``B``
    and ``C`` (blocks, batch, H, W, K, N) and an image to ``A`` (batch, K, D, N), ``D`` and ``delta_bias``
    (batch, K, D), and in its own type the whole gradient of ``delta``.
    """
    plane, block = tl.program_id(0), tl.program_id(1)
    direction = plane % DIRECTIONS
    image = (plane // DIRECTIONS).to(tl.int64) * height * width
    x_ptr += image * channels
    grad_ptr += image * channels
    delta_ptr += (image * DIRECTIONS + direction) * channels
    delta_gradient_ptr += (image * DIRECTIONS + direction) * channels
    b_ptr += (image * DIRECTIONS + direction) * STATES
    c_ptr += (image * DIRECTIONS + direction) * STATES
    of_block = block.to(tl.int64) * (tl.num_programs(0) // DIRECTIONS) * height * width + image
    b_partial_ptr += (of_block * DIRECTIONS + direction) * STATES
    c_partial_ptr += (of_block * DIRECTIONS + direction) * STATES
    x_partial_ptr += plane.to(tl.int64) * height * width * channels

    channel = block * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    real = channel < channels
    own = direction * channels + channel
    rate = tl.load(a_ptr + own[None, :] * STATES + state[:, None], mask=real[None, :], other=0.0) * LOG2_E
    bias = tl.load(delta_bias_ptr + own, mask=real, other=0.0)
    skip = tl.load(d_ptr + own, mask=real, other=0.0)

    lines, length, _, _ = _walk(direction, height, width)
    in_line = tl.cdiv(length, STEPS)
    tiles = lines * in_line
    last_first = (in_line - 1) * STEPS
    line = lines - 1
    first = last_first
    states_ptr += plane.to(tl.int64) * _tiles_kept(height, width, STEPS) * STATES * channels
    states_ptr += channel[None, :] * STATES + state[:, None]
    kept = (tiles - 1).to(tl.int64) * STATES * channels
    position, inside = _tile_positions(direction, line, first, height, width, STEPS)
    present = real[:, None] & inside[None, :]
    ahead = _load_inputs(x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES)
    x, raw, b = _widened(ahead)
    c = _load(c_ptr, position, DIRECTIONS * STATES, state, inside[None, :]).to(tl.float32)
    dy = _load(grad_ptr, position, channels, channel, present).to(tl.float32)
    h = tl.load(states_ptr + kept, mask=real[None, :], other=0.0)

    g = tl.zeros([STATES, BLOCK], dtype=tl.float32)
    da = tl.zeros([STATES, BLOCK], dtype=tl.float32)
    dd = tl.zeros([BLOCK, STEPS], dtype=tl.float32)
    dbias = tl.zeros([BLOCK, STEPS], dtype=tl.float32)
    for _ in range(tiles):
        delta = _step_sizes(raw, bias, inside)
        slope = _sigmoid(raw + bias[:, None])
        dd += dy * x
        deltas = _columns(delta, BLOCK, STEPS)
        inputs = _columns(delta * x, BLOCK, STEPS)
        dys = _columns(dy, BLOCK, STEPS)
        bs = _columns(b, STATES, STEPS)
        cs = _columns(c, STATES, STEPS)

        decays = ()
        states = (h,)
        for i in tl.static_range(STEPS):
            decay = tl.exp2(deltas[i][None, :] * rate)
            h = decay * h + inputs[i][None, :] * bs[i][:, None]
            decays = decays + (decay,)  # noqa: RUF005  Triton has no unpacking
            states = states + (h,)  # noqa: RUF005

        at = position
        writes = present
        exist = inside
        line, first = _tile_before(line, first, last_first, STEPS)
        position, inside = _tile_positions(direction, line, first, height, width, STEPS)
        present = real[:, None] & inside[None, :]
        ahead = _load_inputs(
            x_ptr, delta_ptr, b_ptr, position, present, inside, channel, state, channels, STATES
        )
        c_ahead = _load(c_ptr, position, DIRECTIONS * STATES, state, inside[None, :])
        grad_ahead = _load(grad_ptr, position, channels, channel, present)
        kept = tl.maximum(kept - STATES * channels, 0)
        h = tl.load(states_ptr + kept, mask=real[None, :], other=0.0)

        into = ()
        rates = ()
        dbs = ()
        dcs = ()
        for i in tl.static_range(STEPS - 1, -1, -1):
            g += dys[i][None, :] * cs[i][:, None]
            dcs = (tl.sum(_rounded(states[i + 1], dys[i]), axis=1),) + dcs  # noqa: RUF005
            dbs = (tl.sum(_rounded(g, inputs[i]), axis=1),) + dbs  # noqa: RUF005
            into = (tl.sum(g * bs[i][:, None], axis=0),) + into  # noqa: RUF005
            g = g * decays[i]
            through = g * states[i]
            da += through * deltas[i][None, :]
            rates = (tl.sum(through * rate, axis=0),) + rates  # noqa: RUF005

        through_input = _tile(into, BLOCK, STEPS)
        through_decay = _tile(rates, BLOCK, STEPS) * LN_2
        ddelta = (x * through_input + through_decay) * slope
        ddelta = tl.where(exist[None, :], ddelta, 0.0)
        dbias += ddelta
        of_map = at[None, :] * channels + channel[:, None]
        tl.store(x_partial_ptr + of_map, delta * through_input + skip[:, None] * dy, mask=writes)
        of_delta = at[None, :] * (DIRECTIONS * channels) + channel[:, None]
        rounded = ddelta.to(delta_gradient_ptr.dtype.element_ty)
        tl.store(delta_gradient_ptr + of_delta, rounded, mask=writes)
        of_states = at[None, :] * (DIRECTIONS * STATES) + state[:, None]
        tl.store(b_partial_ptr + of_states, _tile(dbs, STATES, STEPS), mask=exist[None, :])
        tl.store(c_partial_ptr + of_states, _tile(dcs, STATES, STEPS), mask=exist[None, :])
        x, raw, b = _widened(ahead)
        c = c_ahead.to(tl.float32)
        dy = grad_ahead.to(tl.float32)

    of_channel = plane.to(tl.int64) * channels + channel
    tl.store(a_partial_ptr + of_channel[None, :] * STATES + state[:, None], da, mask=real[None, :])
    tl.store(d_partial_ptr + of_channel, tl.sum(dd, axis=1), mask=real)
    tl.store(bias_partial_ptr + of_channel, tl.sum(dbias, axis=1), mask=real)
