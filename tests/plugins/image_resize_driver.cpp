// Resizes pictures that stand alone in memory, for the sanitizers to watch: a read or write outside them, or two threads
// that meet, stops the program. Arguments: the instruction sets to run.
#include <cstdio>
#include <thread>
#include <vector>

#include "resize.h"

namespace {

msmamba::Kernels chosen = {};

void run_on_threads(void*, int width, void (*body)(void*), void* data) {
  std::vector<std::thread> threads;
  for (int i = 1; i < width; ++i) threads.emplace_back(body, data);
  body(data);
  for (std::thread& thread : threads) thread.join();
}

// Every buffer is an allocation of its own, exactly as long as what is in it.
bool runs(int64_t height, int64_t width, const msmamba::Part& part, int64_t size) {
  const msmamba::Parallel threads = {nullptr, 3, run_on_threads};
  std::vector<uint8_t> picture(static_cast<size_t>(height * width * 3));
  for (size_t i = 0; i < picture.size(); ++i) picture[i] = static_cast<uint8_t>(i * 37 ^ i >> 3);
  std::vector<float> tables(3 * 256), tensor(static_cast<size_t>(3 * size * size), -1);
  for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<float>(i % 256);
  std::vector<uint8_t> pixels(static_cast<size_t>(size * size * 3));
  const msmamba::Square bytes = {size, pixels.data(), nullptr, nullptr};
  const msmamba::Square floats = {size, nullptr, tables.data(), tensor.data()};
  for (const msmamba::Square& square : {bytes, floats}) {
    if (msmamba::resize_picture(picture.data(), height, width, part, square, threads) != nullptr) return false;
  }
  for (int64_t i = 0; i < size * size * 3; ++i) {
    if (tensor[static_cast<size_t>(i % 3 * size * size + i / 3)] != pixels[static_cast<size_t>(i)]) return false;
  }
  return true;
}

}  // namespace

namespace msmamba {

const Kernels& active_kernels() { return chosen; }

}  // namespace msmamba

int main(int count, char** names) {
  const struct {
    int64_t height, width;
    msmamba::Part part;
    int64_t size;
  } cases[] = {
      {1, 1, {0, 0, 1, 1}, 1},     {1, 1, {0, 0, 1, 1}, 17},      {1, 9, {0, 0, 9, 1}, 5},
      {9, 1, {0, 0, 1, 9}, 5},     {37, 53, {0, 0, 53, 37}, 19},  {33, 33, {0, 0, 33, 33}, 33},
      {70, 33, {0, 0, 33, 70}, 33}, {33, 70, {0, 0, 70, 33}, 33}, {3, 900, {0, 0, 900, 3}, 8},
      {900, 3, {0, 0, 3, 900}, 8}, {61, 83, {10, 7, 40, 26}, 24}, {300, 40, {39, 299, 1, 1}, 24},
      {600, 700, {0, 0, 700, 600}, 40}, {1300, 300, {0, 0, 300, 1300}, 40},
  };
  for (int i = 1; i < count; ++i) {
    chosen.name = names[i];
    for (const auto& each : cases) {
      if (!runs(each.height, each.width, each.part, each.size)) {
        std::printf("%s: %dx%d differs\n", names[i], static_cast<int>(each.width), static_cast<int>(each.height));
        return 1;
      }
    }
  }
  std::puts("done");
  return 0;
}
