// SPDX-License-Identifier: Apache-2.0
// ACL's own scheduler of one thread, except that release 20.08's (array::at: __n (which is
// 4294967295)) throws out of every kernel that may be split along all dimensions: one in nine of
// NEGEMM's shapes, 8 x 256 x 1024 among them. On one thread the hint says nothing, and is
// replaced.
#include "backends/acl/scheduler.h"

#include <arm_compute/core/Window.h>
#include <arm_compute/runtime/IScheduler.h>
#include <arm_compute/runtime/Scheduler.h>

#include <memory>
#include <mutex>
#include <vector>

namespace capibara::acl {
namespace {

using arm_compute::IScheduler;
using arm_compute::Scheduler;

IScheduler::Hints without_all_dimensions(const IScheduler::Hints& hints) {
  const bool all = hints.split_dimension() == IScheduler::split_dimensions_all;
  return all ? IScheduler::Hints(arm_compute::Window::DimX) : hints;
}
template <class T>
T& without_all_dimensions(T& other) {
  return other;
}

// schedule_op has three or four arguments, by release.
template <class ScheduleOp>
class OneThread;

template <class... Args>
class OneThread<void (IScheduler::*)(Args...)> : public IScheduler {
 public:
  explicit OneThread(IScheduler& acls) : acls_(acls) {}

  void set_num_threads(unsigned) override {}
  unsigned num_threads() const override { return 1; }
  void schedule(arm_compute::ICPPKernel* kernel, const Hints& hints) override {
    acls_.schedule(kernel, without_all_dimensions(hints));
  }
  void schedule_op(Args... args) override { acls_.schedule_op(without_all_dimensions(args)...); }

 protected:
  void run_workloads(std::vector<Workload>& workloads) override {
    acls_.run_tagged_workloads(workloads, nullptr);
  }

 private:
  IScheduler& acls_;
};

}  // namespace

void use_calling_thread() {
  static std::once_flag once;
  std::call_once(once, [] {
    Scheduler::set(Scheduler::Type::ST);
    Scheduler::set(
        std::make_shared<OneThread<decltype(&IScheduler::schedule_op)>>(Scheduler::get()));
  });
}

}  // namespace capibara::acl
