// SPDX-License-Identifier: Apache-2.0
// The native module `capibara_axion._core`.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/numpy.h"
#include "bindings/tensor_view.h"
#include "bindings/torch.h"
#include "cpu/features.h"
#include "cpu/isa.h"
#include "ops/gemm_backend.h"
#include "ops/parallel.h"
#include "ops/registry.h"

namespace py = pybind11;

namespace capibara {
namespace {

py::dict describe_cpu() {
  const CpuInfo& cpu = cpu_info();
  py::dict info;
  info["architecture"] = cpu.architecture;
  info["model"] = cpu.model;
  info["core"] = cpu.core;
  info["features"] = cpu.features.names();
  info["l1d_bytes"] = cpu.l1d_bytes;
  info["l2_bytes"] = cpu.l2_bytes;
  info["l3_bytes"] = cpu.l3_bytes;
  info["logical_cpus"] = cpu.logical_cpus;
  return info;
}

py::list describe_isas() {
  py::list isas;
  for (const IsaInfo& isa : built_isas()) {
    py::dict entry;
    entry["name"] = isa.name;
    entry["description"] = isa.description;
    entry["required"] = isa.required.names();
    entry["runs_here"] = runs_here(isa.isa);
    isas.append(entry);
  }
  return isas;
}

py::list describe_ops() {
  py::list ops;
  for (const OpInfo& op : list_ops()) {
    py::dict entry;
    std::vector<const char*> built;
    for (Isa isa : op.built) built.push_back(info_of(isa).name);
    entry["name"] = op.name;
    entry["built"] = built;
    entry["chosen"] = info_of(op.chosen).name;
    ops.append(entry);
  }
  return ops;
}

py::dict call_counts() {
  py::dict counts;
  const std::vector<OpInfo> ops = list_ops();
  for (int i = 0; i < kOps; ++i) counts[ops[i].name] = calls_of(i);
  return counts;
}

py::dict describe_gemm_backends() {
  py::list crossovers;
  for (const Crossover& row : gemm_crossovers()) {
    py::dict entry;
    entry["type"] = name_of(row.type);
    entry["least_m"] = row.least_m;
    entry["most_m"] = row.most_m;
    if (row.most_m == Crossover::kAny) entry["most_m"] = py::none();
    entry["least_weights"] = row.least_weights;
    entry["backend"] = name_of(row.backend);
    entry["measured"] = row.measured;
    crossovers.append(entry);
  }
  py::dict backends;
  backends["choice"] = name_of(gemm_choice());
  backends["acl"] = acl_version();
  backends["crossovers"] = crossovers;
  return backends;
}

void set_threads(int threads) {
  if (threads < 0 || threads > 4096) {
    throw std::invalid_argument("threads: expected 1 to 4096, or 0 for OpenMP's own setting, got " +
                                std::to_string(threads));
  }
  set_num_threads(threads);
}

}  // namespace
}  // namespace capibara

PYBIND11_MODULE(_core, m) {
  using namespace capibara;
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeMismatch& mismatch) {
      PyErr_SetString(PyExc_TypeError, mismatch.what());
    }
  });
  // A mistaken CAPIBARA_AXION_ISA, _NUM_THREADS or _GEMM fails the import, not a later call.
  chosen_isa();
  num_threads_setting();
  gemm_choice();

  m.attr("__version__") = CAPIBARA_VERSION;
  m.attr("compiler") = CAPIBARA_COMPILER;
  bind_numpy(m);
  m.def("register_torch_ops", &register_torch_ops, py::arg("libtorch"));
  m.def("cpu", &describe_cpu);
  m.def("isas", &describe_isas);
  m.def("ops", &describe_ops);
  m.def("gemm_backends", &describe_gemm_backends);
  m.def("chosen_isa", [] { return info_of(chosen_isa()).name; });
  m.def("call_counts", &call_counts);
  m.def("reset_call_counts", &reset_calls);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_threads, py::arg("threads"));
  m.def("openmp_library", &openmp_library);
  m.def("load_openmp_from", &load_openmp_from, py::arg("path"));
  m.def("rebind_openmp", &rebind_openmp);
}
