// SPDX-License-Identifier: Apache-2.0
// Arm Compute Library's operators, called as guest.py calls the others: see there for the output.
//   acl_peers INDEX:OP:ROWS:COLS ...
// Of the operators that are measured, ACL has softmax in f32; it has no RMSNorm, no gated
// activation in one pass and no rotary embedding.
#include <arm_compute/core/Types.h>
#include <arm_compute/core/Version.h>
#include <arm_compute/runtime/NEON/functions/NESoftmaxLayer.h>
#include <arm_compute/runtime/Scheduler.h>
#include <arm_compute/runtime/Tensor.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr long kMark = 0x6361;  // as in count_plugin.c
constexpr int kWarmUp = 3, kFew = 2, kMore = 3;

int g_marks = 0;
void mark() { syscall(kMark, g_marks++); }

template <class F>
void run(int times, F& call) {
  for (int i = 0; i < times; ++i) call();
}

template <class F>
int measure(F call) {
  run(kWarmUp, call);
  const int first = g_marks;
  mark();
  run(kFew, call);
  mark();
  mark();
  run(kFew + kMore, call);
  mark();
  return first;
}

void softmax(int index, size_t rows, size_t cols) {
  arm_compute::Tensor x, y;
  const arm_compute::TensorInfo info(arm_compute::TensorShape(cols, rows), 1,
                                     arm_compute::DataType::F32);
  x.allocator()->init(info);
  y.allocator()->init(info);
  arm_compute::NESoftmaxLayer layer;
  layer.configure(&x, &y);
  x.allocator()->allocate();
  y.allocator()->allocate();

  std::mt19937 engine(0);
  std::normal_distribution<float> normal;
  const auto row_of = [](arm_compute::Tensor& tensor, size_t r) {
    return reinterpret_cast<float*>(tensor.ptr_to_element(arm_compute::Coordinates(0, r)));
  };
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) row_of(x, r)[c] = normal(engine);
  }
  const int first = measure([&] { layer.run(); });

  // In units of the last place of the row's largest value, as in cases.py.
  double error = 0;
  for (size_t r = 0; r < rows; ++r) {
    double sum = 0, largest = 0, worst = 0;
    for (size_t c = 0; c < cols; ++c) sum += std::exp(double{row_of(x, r)[c]});
    for (size_t c = 0; c < cols; ++c) {
      const double exact = std::exp(double{row_of(x, r)[c]}) / sum;
      largest = std::fmax(largest, exact);
      worst = std::fmax(worst, std::fabs(row_of(y, r)[c] - exact));
    }
    error = std::fmax(error, worst / (0x1p-23 * largest));
  }
  std::printf("{\"case\": %d, \"family\": \"ACL\", \"name\": \"NESoftmaxLayer\", ", index);
  std::printf("\"error\": %g, \"mark\": %d}\n", error, first);
}

}  // namespace

int main(int argc, char** argv) {
  arm_compute::Scheduler::set(arm_compute::Scheduler::Type::ST);
  std::string version = arm_compute::build_information();
  version = version.substr(version.find('=') + 1);
  version.resize(version.find(' '));
  std::printf("{\"versions\": {\"acl\": \"%s\"}}\n", version.c_str());
  for (int i = 1; i < argc; ++i) {
    int index = 0;
    char op[32] = "";
    size_t rows = 0, cols = 0;
    const int fields = std::sscanf(argv[i], "%d:%31[a-z_]:%zu:%zu", &index, op, &rows, &cols);
    if (fields != 4 || std::strcmp(op, "softmax") != 0) {
      std::fprintf(stderr, "%s: expected INDEX:softmax:ROWS:COLS\n", argv[i]);
      return 2;
    }
    softmax(index, rows, cols);
  }
}
