// The machine that translated PTX runs on: threads of one block as coroutines, memory with its checks.
//
// Names: a *round* lets every runnable thread of a block run until it waits or ends. Shared memory is
// tracked in 2-byte cells, global memory too. An *access* is ordered before another when a block barrier,
// or for threads of one warp a warp barrier, lies between them; two unordered accesses to a cell of which
// one writes are a race. (Threads wait for each other in shuffles as well, but those order no memory.)

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 96 << 10;
constexpr int kCell = 2;  // bytes
constexpr int kNobody = -1, kSeveral = -2;

// ---- values -------------------------------------------------------------------------------------------

inline float f32(u32 bits) { return std::bit_cast<float>(bits); }
inline u32 bits(float value) { return std::bit_cast<u32>(value); }
inline float from_f16(u16 half) { return _cvtsh_ss(half); }
inline u16 to_f16(float value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
inline float from_bf16(u16 half) { return f32(u32(half) << 16); }
inline u16 to_bf16(float value) {  // to the nearest, ties to even
    u32 raw = bits(value);
    return std::isnan(value) ? 0x7FFF : u16((raw + 0x7FFF + (raw >> 16 & 1)) >> 16);
}
inline u64 pair(u32 low, u32 high) { return u64(high) << 32 | low; }
inline float lower(u64 two) { return f32(u32(two)); }
inline float upper(u64 two) { return f32(u32(two >> 32)); }

inline s32 divided(u32 a, u32 b) {  // towards zero; what it is by zero, and of the least by -1, GPUs leave open
    return b == 0 ? -1 : s32(s64(s32(a)) / s32(b));
}
inline float flush(float value) {  // .ftz: subnormals become zero
    return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}
inline float maximum(float a, float b) { return std::isnan(a) ? b : std::isnan(b) ? a : std::max(a, b); }

struct Approximation {  // of functions that a GPU rounds loosely: off by up to `ulps` either way
    int ulps = 0;
    u32 state = 1;
    float operator()(double exact) {
        float value = float(exact);
        if (ulps == 0 || !std::isnormal(value)) return value;
        state = state * 1664525u + 1013904223u;
        return f32(bits(value) + int((state >> 8) % (2 * ulps + 1)) - ulps);
    }
};
inline Approximation approximately;

template <class T> T shift_left(T value, u32 by) { return by >= 8 * sizeof(T) ? T(0) : T(value << by); }
template <class T> T shift_right(T value, u32 by) {
    u32 last = 8 * sizeof(T) - 1;
    if (by > last) return value < 0 ? T(-1) : T(0);
    return T(value >> by);
}
inline u32 extract_bits(u32 value, u32 from, u32 count) {
    from &= 255, count &= 255;
    if (from > 31) return 0;
    return count >= 32 ? value >> from : (value >> from) & ((1u << count) - 1);
}

// ---- memory -------------------------------------------------------------------------------------------

struct Access {  // the last one of its kind to a cell
    int block = kNobody, thread = kNobody, warp = kNobody;
    u32 block_time = 0, warp_time = 0;
};
struct Cell {
    Access write, read;
};
struct Buffer {
    u8* base;
    u64 size;
    bool writable;
    std::vector<Cell> cells;
};

struct Block;
struct Warp {
    u32 time = 0;  // warp barriers passed
    u32 arrived = 0;
    u32 meetings = 0;
    u32 line = 0;
    u64 values[2][kWarp] = {};  // of this meeting and of the last, which slow lanes may still read
};
struct Thread {
    Block* block;
    Warp* warp;
    int index, lane;
    u32 line = 0;
    enum { kReady, kAtBarrier, kDone } state = kReady;
    ucontext_t context, *scheduler;
    std::string error;

    void yield() { swapcontext(&context, scheduler); }
    void wait_for_block();
    // Gives every lane the values of all lanes; they must meet at the same instruction.
    const u64* meet(u64 value);
    u32 shuffle_xor(u32 value, u32 distance) { return u32(meet(value)[lane ^ int(distance & 31)]); }
    u32 shuffle_from(u32 value, u32 source) { return u32(meet(value)[source & 31]); }
    void wait_for_warp() {
        u32 meeting = warp->meetings;
        meet(0);
        if (warp->time <= meeting) warp->time = meeting + 1;
    }
    u8* global(u64 address, u32 size, bool write, const void* value = nullptr);
    u8* shared(u32 offset, u32 size, bool write, const void* value = nullptr);
    void load_matrices(u32 row_offset, u32 count, u32* out);
    void store_matrix_transposed(u32 row_offset, u32 value);
};
struct Problem : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Block {
    u32 id[3], grid[3];
    int serial;
    u32 time = 0;  // block barriers passed
    std::vector<u8> shared;
    std::vector<Cell> shared_cells;
    std::vector<Buffer>* buffers;
    std::vector<u8*> parameters;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
};

[[noreturn]] inline void fail(const Thread& t, const std::string& what) {
    throw Problem(what + " (thread " + std::to_string(t.index) + ", block " + std::to_string(t.block->id[0]) +
                  "," + std::to_string(t.block->id[1]) + "," + std::to_string(t.block->id[2]) + ", PTX line " +
                  std::to_string(t.line) + ")");
}

inline bool ordered(const Access& past, const Thread& now) {
    if (past.block == kNobody) return true;
    if (past.block != now.block->serial) return false;
    if (past.thread == now.index || past.block_time < now.block->time) return true;
    return past.warp == now.index / kWarp && past.warp_time < now.warp->time;
}

inline void touch(Thread& t, std::vector<Cell>& cells, u64 offset, u32 size, bool write, bool same_value,
                  const char* space) {
    Access self{t.block->serial, t.index, t.index / kWarp, t.block->time, t.warp->time};
    for (u64 i = offset / kCell; i <= (offset + size - 1) / kCell; ++i) {
        Cell& cell = cells[i];
        // Lanes may write one value twice: Triton does so where lanes hold copies.
        bool clash = !ordered(cell.write, t) && !(write && same_value && cell.write.block == t.block->serial);
        if (write) clash |= !ordered(cell.read, t);
        if (clash) fail(t, std::string("race in ") + space + " memory, " + (write ? "write" : "read"));
        if (write) {
            cell.write = self;
        } else {
            bool together = cell.read.block == self.block && cell.read.block_time == self.block_time;
            bool same_warp = cell.read.warp == self.warp;
            bool later = same_warp && cell.read.warp_time < self.warp_time;
            if (!together || later || cell.read.thread == self.thread) {
                cell.read = self;
            } else {
                cell.read.thread = kSeveral;
                if (!same_warp) cell.read.warp = kSeveral;
            }
        }
    }
}

inline u8* Thread::global(u64 address, u32 size, bool write, const void* value) {
    if (address % size) fail(*this, "misaligned global access");
    for (Buffer& buffer : *block->buffers) {
        u64 offset = address - u64(buffer.base);
        if (address < u64(buffer.base) || offset + size > buffer.size) continue;
        if (write && !buffer.writable) fail(*this, "write to a read-only buffer");
        if (buffer.writable) {
            bool same = write && !memcmp(buffer.base + offset, value, size);
            touch(*this, buffer.cells, offset, size, write, same, "global");
        }
        return buffer.base + offset;
    }
    fail(*this, write ? "global write out of bounds" : "global read out of bounds");
}

inline u8* Thread::shared(u32 offset, u32 size, bool write, const void* value) {
    if (offset % size) fail(*this, "misaligned shared access");
    if (u64(offset) + size > block->shared.size()) fail(*this, "shared access out of bounds");
    bool same = write && !memcmp(&block->shared[offset], value, size);
    touch(*this, block->shared_cells, offset, size, write, same, "shared");
    return &block->shared[offset];
}

// ---- threads that meet --------------------------------------------------------------------------------

inline void Thread::wait_for_block() {
    state = kAtBarrier;
    yield();
}

inline const u64* Thread::meet(u64 value) {
    u32 meeting = warp->meetings;
    if (warp->arrived && warp->line != line) fail(*this, "lanes of a warp meet at different instructions");
    warp->line = line;
    warp->values[meeting % 2][lane] = value;
    warp->arrived |= 1u << lane;
    if (warp->arrived == 0xFFFFFFFFu) {
        warp->arrived = 0;
        ++warp->meetings;
    }
    while (warp->meetings == meeting) yield();
    return warp->values[meeting % 2];
}

// ldmatrix.m8n8: 8x8 matrices of 16-bit elements; lane i names row i % 8 of matrix i / 8, and receives
// elements 2 * (lane % 4) and the next of row lane / 4 of every matrix.
inline void Thread::load_matrices(u32 row_offset, u32 count, u32* out) {
    const u64* rows = meet(row_offset);
    for (u32 m = 0; m < count; ++m)
        memcpy(&out[m], shared(u32(rows[8 * m + lane / 4]) + 4 * (lane % 4), 4, false), 4);
}

// stmatrix.m8n8.x1.trans: lane i < 8 names column i; lanes hold elements as above.
inline void Thread::store_matrix_transposed(u32 row_offset, u32 value) {
    const u64* columns = meet(row_offset);
    for (int i = 0; i < 2; ++i) {
        u16 element = u16(value >> 16 * i);
        u32 offset = u32(columns[2 * (lane % 4) + i]) + 2 * (lane / 4);
        memcpy(shared(offset, 2, true, &element), &element, 2);
    }
}

// ---- launching ----------------------------------------------------------------------------------------

void run_thread(Thread& t);  // the translated kernel

inline void enter(u32 low, u32 high) {
    Thread& t = *reinterpret_cast<Thread*>(pair(low, high));
    try {
        run_thread(t);
    } catch (const Problem& problem) {
        t.error = problem.what();
    }
    t.state = Thread::kDone;
    t.yield();
}

enum Order { kForward, kReverse, kShuffled };

inline void run_block(Block& block, Order order, u32& random, std::vector<std::unique_ptr<u8[]>>& stacks) {
    ucontext_t scheduler;
    int count = int(block.threads.size()), live = count;
    std::vector<int> turns(count);
    for (int i = 0; i < count; ++i) {
        Thread& t = block.threads[i];
        getcontext(&t.context);
        t.context.uc_stack = {stacks[i].get(), 0, kStackBytes};
        t.context.uc_link = nullptr;
        t.scheduler = &scheduler;
        u64 self = u64(&t);
        makecontext(&t.context, reinterpret_cast<void (*)()>(enter), 2, u32(self), u32(self >> 32));
        turns[i] = order == kReverse ? count - 1 - i : i;
    }
    auto meetings = [&] {
        u64 sum = 0;
        for (Warp& warp : block.warps) sum += 33 * u64(warp.meetings) + std::popcount(warp.arrived);
        return sum;
    };
    while (live) {
        if (order == kShuffled)
            for (int i = count - 1; i > 0; --i) {
                random = random * 1664525u + 1013904223u;
                std::swap(turns[i], turns[(random >> 8) % (i + 1)]);
            }
        u64 before = meetings();
        bool progress = false;
        for (int i : turns) {
            Thread& t = block.threads[i];
            if (t.state != Thread::kReady) continue;
            swapcontext(&scheduler, &t.context);
            if (!t.error.empty()) throw Problem(t.error);
            if (t.state == Thread::kDone) --live;
            progress |= t.state != Thread::kReady;
        }
        int waiting = 0;
        for (Thread& t : block.threads) waiting += t.state == Thread::kAtBarrier;
        if (waiting && waiting == live) {
            ++block.time;
            for (Thread& t : block.threads)
                if (t.state == Thread::kAtBarrier) t.state = Thread::kReady;
            progress = true;
        }
        if (live && !progress && meetings() == before) {
            for (Thread& t : block.threads)
                if (t.state != Thread::kDone) fail(t, "deadlock: a thread waits for others that never come");
        }
    }
}

extern "C" int launch(const u32* grid, u32 threads, u32 shared_bytes, u8** parameters, int parameter_count,
                      int buffer_count, u8** bases, const u64* sizes, const int* writable, int order, int ulps,
                      u32 seed, char* message, int message_size) {
    approximately = {ulps, seed};
    u32 random = seed;
    std::vector<Buffer> buffers;
    for (int i = 0; i < buffer_count; ++i) {
        buffers.push_back({bases[i], sizes[i], writable[i] != 0, {}});
        if (writable[i]) buffers.back().cells.resize(sizes[i] / kCell + 1);
    }
    std::vector<std::unique_ptr<u8[]>> stacks;
    for (u32 i = 0; i < threads; ++i) stacks.push_back(std::make_unique<u8[]>(kStackBytes));
    int serial = 0;
    try {
        for (u32 z = 0; z < grid[2]; ++z)
            for (u32 y = 0; y < grid[1]; ++y)
                for (u32 x = 0; x < grid[0]; ++x, ++serial) {
                    Block block{{x, y, z}, {grid[0], grid[1], grid[2]}, serial};
                    block.shared.assign(shared_bytes, 0xFF);  // NaN in every floating type
                    block.shared_cells.resize(shared_bytes / kCell + 1);
                    block.buffers = &buffers;
                    block.parameters.assign(parameters, parameters + parameter_count);
                    block.warps.resize((threads + kWarp - 1) / kWarp);
                    block.threads.resize(threads);
                    for (u32 i = 0; i < threads; ++i) {
                        Thread& t = block.threads[i];
                        t.block = &block;
                        t.warp = &block.warps[i / kWarp];
                        t.index = int(i);
                        t.lane = int(i % kWarp);
                    }
                    run_block(block, Order(order), random, stacks);
                }
    } catch (const Problem& problem) {
        strncpy(message, problem.what(), message_size - 1);
        return 1;
    }
    return 0;
}
