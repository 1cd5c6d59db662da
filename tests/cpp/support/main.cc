// SPDX-License-Identifier: Apache-2.0
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <random>

int main(int argc, char** argv) {
  doctest::Context context;
  context.setOption("rand-seed", static_cast<int>(std::random_device{}() >> 1));
  context.applyCommandLine(argc, argv);
  return context.run();
}
