// Runs the native scan over awkward shapes, types, addresses and thread counts, and compares it with a plain recurrence
// in double precision. Made to be compiled with a sanitizer (test_cpu_scan_sanitizers.py): every buffer is exactly as
// large as it has to be, and begins at an address that is a multiple of nothing in particular.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "scan.h"
#include "thread_pool.h"

namespace {

using msmamba::ElementType;
using msmamba::kDirections;
using msmamba::ScanShape;

// `count` elements of `size` bytes, `offset` bytes behind an aligned address, with nothing behind them.
class Buffer {
 public:
  Buffer(size_t count, size_t size, size_t offset) : memory_(static_cast<char*>(std::malloc(count * size + offset))) {
    if (memory_ == nullptr) std::abort();
    data_ = memory_ + offset;
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

 private:
  char* memory_;
  void* data_;
};

size_t size_of(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

// Values that float16 and bfloat16 hold exactly, so that every type is given the same problem.
std::vector<double> values(size_t count, double low, double high, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> pick(static_cast<int>(low * 16), static_cast<int>(high * 16));
  std::vector<double> all(count);
  for (double& value : all) value = pick(random) / 16.0;
  return all;
}

uint16_t half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) | ((bits >> 23 & 0xffu) - 112) << 10 | (bits >> 13 & 0x3ffu));
}

void put(const Buffer& buffer, const std::vector<double>& source, ElementType type) {
  char* to = static_cast<char*>(buffer.data());
  for (double value : source) {
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    const uint16_t narrow = type == ElementType::kFloat16 ? half_bits(single) : static_cast<uint16_t>(bits >> 16);
    if (type == ElementType::kFloat32) {
      std::memcpy(to, &single, 4);
    } else {
      std::memcpy(to, &narrow, 2);
    }
    to += size_of(type);
  }
}

double get(const Buffer& buffer, size_t index, ElementType type) {
  const char* from = static_cast<const char*>(buffer.data()) + index * size_of(type);
  if (type == ElementType::kFloat32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  if (type == ElementType::kBFloat16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  const int exponent = bits >> 10 & 31;
  const double fraction = (bits & 1023) / 1024.0;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
  return bits & 0x8000 ? -magnitude : magnitude;
}

struct Problem {
  ScanShape shape;
  std::vector<double> x, delta, A, B, C, D, bias;

  explicit Problem(const ScanShape& s) : shape(s) {
    const size_t rows = static_cast<size_t>(s.batch * s.height * s.width);
    const size_t channels = static_cast<size_t>(s.channels), states = static_cast<size_t>(s.states);
    x = values(rows * channels, -2, 2, 1);
    delta = values(rows * kDirections * channels, -3, 1, 2);
    A = values(kDirections * channels * states, -5, -0.1, 3);
    B = values(rows * kDirections * states, -1, 1, 4);
    C = values(rows * kDirections * states, -1, 1, 5);
    D = values(kDirections * channels, -1, 1, 6);
    bias = values(kDirections * channels, -2, 0, 7);
  }

  std::vector<double> scanned() const {
    const int64_t length = shape.height * shape.width, channels = shape.channels, states = shape.states;
    std::vector<double> y(x.size());
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int k = 0; k < kDirections; ++k) {
        for (int64_t d = 0; d < channels; ++d) {
          std::vector<double> h(static_cast<size_t>(states));
          for (int64_t step = 0; step < length; ++step) {
            const int64_t t = k >= 2 ? length - 1 - step : step;
            const int64_t position = k % 2 ? t % shape.height * shape.width + t / shape.height : t;
            const int64_t row = b * length + position, wide = row * kDirections + k;
            const double v = delta[wide * channels + d] + bias[k * channels + d];
            const double delta_ = std::log1p(std::exp(v)), input = x[row * channels + d];
            double out = D[k * channels + d] * input;
            for (int64_t n = 0; n < states; ++n) {
              const double decay = std::exp(delta_ * A[(k * channels + d) * states + n]);
              h[n] = decay * h[n] + delta_ * input * B[wide * states + n];
              out += h[n] * C[wide * states + n];
            }
            y[row * channels + d] += out;
          }
        }
      }
    }
    return y;
  }
};

msmamba::Parallel threads(int width) {
  return {nullptr, width,
          [](void*, int wanted, void (*body)(void*), void* data) { msmamba::run_in_pool(wanted, body, data); }};
}

int run(const Problem& problem, const std::vector<double>& truth, ElementType type, size_t offset, int width) {
  const size_t size = size_of(type);
  const std::vector<double>* contents[] = {&problem.x, &problem.delta, &problem.A,   &problem.B,
                                           &problem.C, &problem.D,     &problem.bias};
  const bool of_type[] = {true, true, false, true, true, false, false};
  std::vector<Buffer*> buffers;
  for (int i = 0; i < 7; ++i) {
    buffers.push_back(new Buffer(contents[i]->size(), of_type[i] ? size : 4, offset));
    put(*buffers.back(), *contents[i], of_type[i] ? type : ElementType::kFloat32);
  }
  const Buffer y(problem.x.size(), size, offset);
  std::memset(y.data(), 0xff, problem.x.size() * size);
  const msmamba::ScanInputs inputs = {type,
                                      buffers[0]->data(),
                                      buffers[1]->data(),
                                      buffers[2]->floats(),
                                      buffers[3]->data(),
                                      buffers[4]->data(),
                                      buffers[5]->floats(),
                                      buffers[6]->floats()};
  int wrong = 0;
  if (msmamba::forward_scan(problem.shape, inputs, y.data(), threads(width)) != nullptr) ++wrong;
  const double tolerance = type == ElementType::kFloat32 ? 1e-5 : type == ElementType::kFloat16 ? 1e-3 : 1e-2;
  for (size_t i = 0; i < truth.size(); ++i) {
    // Written so that a NaN counts as wrong.
    if (!(std::fabs(get(y, i, type) - truth[i]) <= tolerance * (1 + std::fabs(truth[i])))) ++wrong;
  }
  if (type == ElementType::kFloat32) {
    std::vector<Buffer*> gradients;
    for (int i = 0; i < 7; ++i) gradients.push_back(new Buffer(contents[i]->size(), 4, offset));
    for (int i = 0; i < 7; ++i) std::memset(gradients[i]->data(), 0xff, contents[i]->size() * 4);
    const msmamba::ScanGradients named = {gradients[0]->floats(), gradients[1]->floats(), gradients[2]->floats(),
                                          gradients[3]->floats(), gradients[4]->floats(), gradients[5]->floats(),
                                          gradients[6]->floats()};
    if (msmamba::backward_scan(problem.shape, inputs, buffers[0]->floats(), named, threads(width)) != nullptr) ++wrong;
    for (int i = 0; i < 7; ++i) {
      for (size_t j = 0; j < contents[i]->size(); ++j) wrong += std::isfinite(get(*gradients[i], j, type)) ? 0 : 1;
    }
    for (Buffer* buffer : gradients) delete buffer;
  }
  for (Buffer* buffer : buffers) delete buffer;
  return wrong;
}

}  // namespace

int main() {
  const ScanShape shapes[] = {{1, 1, 1, 1, 1},  {2, 1, 19, 3, 2},   {1, 17, 1, 5, 16}, {3, 5, 7, 23, 16},
                              {2, 6, 5, 33, 5}, {1, 9, 8, 24, 16}, {2, 3, 3, 64, 16}, {1, 2, 3, 101, 21},
                              {5, 6, 6, 16, 4}};
  int runs = 0, wrong = 0;
  for (const char* kernels : {"avx512", "avx2", "neon", "baseline"}) {
    if (!msmamba::select_kernels(kernels)) continue;
    for (const ScanShape& shape : shapes) {
      const Problem problem(shape);
      const std::vector<double> truth = problem.scanned();
      for (ElementType type : {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
        for (int width : {1, 3}) {
          const size_t offset = static_cast<size_t>(runs % 8);
          const int here = run(problem, truth, type, offset, width);
          if (here != 0) {
            std::printf("%s %lldx%lldx%lld, %lld channels, %lld states, type %d: %d wrong values\n", kernels,
                        static_cast<long long>(shape.batch), static_cast<long long>(shape.height),
                        static_cast<long long>(shape.width), static_cast<long long>(shape.channels),
                        static_cast<long long>(shape.states), static_cast<int>(type), here);
          }
          wrong += here;
          ++runs;
        }
      }
    }
  }
  std::printf("%d runs, %d wrong values\n", runs, wrong);
  return wrong == 0 ? 0 : 1;
}
