// SPDX-License-Identifier: Apache-2.0
// forced_isa_test NAME, with CAPIBARA_AXION_ISA=NAME: every operator chooses that ISA, or the last
// of those that it includes. A name that is none must be refused. Exit code 77: the ISA does not
// run on this CPU (and was refused).
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/environment.h"
#include "ops/registry.h"

namespace {

constexpr int kSkipped = 77;

const capibara::IsaInfo* find_isa(const std::string& name) {
  for (const capibara::IsaInfo& info : capibara::built_isas()) {
    if (name == info.name) return &info;
  }
  return nullptr;
}

int expect_refusal(const std::string& name, const char* reason) {
  try {
    capibara::list_ops();
  } catch (const std::invalid_argument& error) {
    std::printf("refused: %s\n", error.what());
    const std::string message = error.what();
    const bool says_it = message.find("CAPIBARA_AXION_ISA") != std::string::npos &&
                         message.find("'" + name + "'") != std::string::npos &&
                         message.find(reason) != std::string::npos;
    return says_it ? 0 : 1;
  }
  std::printf("'%s' was accepted\n", name.c_str());
  return 1;
}

int expect_choice(const capibara::IsaInfo& forced) {
  if (capibara::chosen_isa() != forced.isa) return 1;
  bool its_own = false;
  for (const capibara::OpInfo& op : capibara::list_ops()) {
    std::printf("%s: %s\n", op.name, capibara::info_of(op.chosen).name);
    capibara::Isa expected = capibara::Isa::scalar;
    for (const capibara::Isa isa : op.built) {
      if (forced.required.contains(capibara::info_of(isa).required)) expected = isa;
    }
    if (op.chosen != expected) return 1;
    its_own = its_own || op.chosen == forced.isa;
  }
  if (!its_own) std::printf("no operator is built for %s\n", forced.name);
  return its_own ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || capibara::requested_isa() != argv[1]) {
    std::printf("usage: CAPIBARA_AXION_ISA=NAME %s NAME\n", argv[0]);
    return 2;
  }
  const capibara::IsaInfo* forced = find_isa(argv[1]);
  if (!forced) return expect_refusal(argv[1], "expected one of scalar");
  if (capibara::runs_here(forced->isa)) return expect_choice(*forced);
  std::printf("skipped: this CPU does not run %s\n", forced->name);
  return expect_refusal(argv[1], "does not run on this CPU") ? 1 : kSkipped;
}
