// SPDX-License-Identifier: Apache-2.0
// Arm Compute Library's operators, called as guest.py calls the others: see there for the output.
//   acl_peers INDEX:softmax:ROWS:COLS:0 INDEX:linear:M:N:K ...
// Of the operators that are measured, ACL has softmax and matrix products in f32; it has no
// RMSNorm, no gated activation in one pass and no rotary embedding. Its products of f16 and bf16
// are only in builds for cores that have their instructions, which Debian's is not.
#include <arm_compute/core/Types.h>
#include <arm_compute/core/Version.h>
#include <arm_compute/runtime/NEON/functions/NEGEMM.h>
#include <arm_compute/runtime/NEON/functions/NESoftmaxLayer.h>
#include <arm_compute/runtime/Tensor.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/acl/scheduler.h"

namespace {

constexpr long kMark = 0x6361;  // as in count_plugin.c
// As in guest.py: fewer calls where one takes seconds. The weights are reshaped in the first.
struct Plan {
  int warm_up, few, more;
};
constexpr Plan kPlan = {3, 2, 3}, kLongPlan = {1, 1, 1};
constexpr size_t kLong = size_t{1} << 24;  // multiplications

int g_marks = 0;
void mark() { syscall(kMark, g_marks++); }

template <class F>
void run(int times, F& call) {
  for (int i = 0; i < times; ++i) call();
}

template <class F>
int measure(const Plan& plan, F call) {
  run(plan.warm_up, call);
  const int first = g_marks;
  mark();
  run(plan.few, call);
  mark();
  mark();
  run(plan.few + plan.more, call);
  mark();
  return first;
}

float* row_of(arm_compute::Tensor& tensor, size_t r) {
  return reinterpret_cast<float*>(
      tensor.ptr_to_element(arm_compute::Coordinates(0, static_cast<int>(r))));
}

arm_compute::TensorInfo info_of(size_t rows, size_t cols) {
  return {arm_compute::TensorShape(cols, rows), 1, arm_compute::DataType::F32};
}

void fill(arm_compute::Tensor& tensor, size_t rows, size_t cols, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) row_of(tensor, r)[c] = normal(engine);
  }
}

void print(int index, const char* name, double error, int mark, const Plan& plan) {
  std::printf("{\"case\": %d, \"family\": \"ACL\", \"name\": \"%s\", ", index, name);
  std::printf("\"error\": %g, \"mark\": %d, \"more\": %d}\n", error, mark, plan.more);
  std::fflush(stdout);
}

void linear(int index, size_t m, size_t n, size_t k) {
  arm_compute::Tensor a, b, y;
  a.allocator()->init(info_of(m, k));
  b.allocator()->init(info_of(k, n));
  y.allocator()->init(info_of(m, n));
  arm_compute::NEGEMM gemm;
  gemm.configure(&a, &b, nullptr, &y, 1.0f, 0.0f);
  a.allocator()->allocate();
  b.allocator()->allocate();
  y.allocator()->allocate();
  fill(a, m, k, 0);
  fill(b, k, n, 1);
  const Plan& plan = m * n * k >= kLong ? kLongPlan : kPlan;
  const int first = measure(plan, [&] { gemm.run(); });

  double error = 0;
  for (size_t r = 0; r < m; r += (m + 7) / 8) {
    std::vector<double> exact(n);
    double largest = 0;
    for (size_t d = 0; d < k; ++d) {
      for (size_t j = 0; j < n; ++j) exact[j] += double{row_of(a, r)[d]} * row_of(b, d)[j];
    }
    for (size_t j = 0; j < n; ++j) largest = std::fmax(largest, std::fabs(exact[j]));
    for (size_t j = 0; j < n; ++j) {
      error = std::fmax(error, std::fabs(row_of(y, r)[j] - exact[j]) / (0x1p-23 * largest));
    }
  }
  print(index, "NEGEMM", error, first, plan);
}

void softmax(int index, size_t rows, size_t cols) {
  arm_compute::Tensor x, y;
  x.allocator()->init(info_of(rows, cols));
  y.allocator()->init(info_of(rows, cols));
  arm_compute::NESoftmaxLayer layer;
  layer.configure(&x, &y);
  x.allocator()->allocate();
  y.allocator()->allocate();
  fill(x, rows, cols, 0);
  const int first = measure(kPlan, [&] { layer.run(); });

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
  print(index, "NESoftmaxLayer", error, first, kPlan);
}

}  // namespace

int main(int argc, char** argv) {
  capibara::acl::use_calling_thread();
  std::string version = arm_compute::build_information();
  version = version.substr(version.find('=') + 1);
  version.resize(version.find(' '));
  std::printf("{\"versions\": {\"acl\": \"%s\"}}\n", version.c_str());
  for (int i = 1; i < argc; ++i) {
    int index = 0;
    char op[32] = "";
    size_t m = 0, n = 0, k = 0;
    const int fields = std::sscanf(argv[i], "%d:%31[a-z_]:%zu:%zu:%zu", &index, op, &m, &n, &k);
    if (fields == 5 && std::strcmp(op, "softmax") == 0) {
      softmax(index, m, n);
    } else if (fields == 5 && std::strcmp(op, "linear") == 0) {
      linear(index, m, n, k);
    } else {
      std::fprintf(stderr, "%s: expected INDEX:softmax:ROWS:COLS:0 or INDEX:linear:M:N:K\n",
                   argv[i]);
      return 2;
    }
  }
}
