// SPDX-License-Identifier: Apache-2.0
// Attention, the paged KV cache and the 8-bit floats on NumPy arrays.
#include "bindings/attention_operators.h"
#include "bindings/numpy.h"
#include "bindings/numpy_backend.h"

namespace py = pybind11;

namespace capibara {
namespace {

using B = NumPyBackend;

AttentionArguments<B> attention_arguments(const py::object& scale, bool causal, int64_t window_left,
                                          int64_t window_right, const py::object& softcap,
                                          const py::object& alibi_slopes, const py::object& sinks,
                                          const py::object& ranges, const py::object& out) {
  AttentionArguments<B> arguments = {};
  if (!scale.is_none()) arguments.scale = as_double(scale, "scale");
  arguments.causal = causal;
  arguments.window_left = window_left;
  arguments.window_right = window_right;
  arguments.softcap = as_double(softcap, "softcap");
  arguments.alibi_slopes = optional_array(alibi_slopes, "alibi_slopes");
  arguments.sinks = optional_array(sinks, "sinks");
  arguments.ranges = optional_array(ranges, "ranges");
  arguments.out = optional_array(out, "out");
  return arguments;
}

py::array flash_attention_numpy(const py::object& q, const py::object& k, const py::object& v,
                                const py::object& query_start, const py::object& key_start,
                                const py::object& scale, bool causal, int64_t window_left,
                                int64_t window_right, const py::object& softcap,
                                const py::object& alibi_slopes, const py::object& sinks,
                                const py::object& ranges, const py::object& out) {
  return flash_attention<B>(as_array(q, "q", true), as_array(k, "k"), as_array(v, "v"),
                            optional_array(query_start, "query_start"),
                            optional_array(key_start, "key_start"),
                            attention_arguments(scale, causal, window_left, window_right, softcap,
                                                alibi_slopes, sinks, ranges, out));
}

CacheArguments<B> cache_arguments(const py::object& data, const py::object& key_scales,
                                  const py::object& value_scales, int64_t type, int64_t compute) {
  return {as_array(data, "data"), optional_array(key_scales, "key_scales"),
          optional_array(value_scales, "value_scales"), type, compute};
}

py::array paged_attention_numpy(const py::object& q, const py::object& data,
                                const py::object& key_scales, const py::object& value_scales,
                                int64_t type, int64_t compute, const py::object& block_table,
                                const py::object& seq_lens, const py::object& query_start,
                                const py::object& scale, bool causal, int64_t window_left,
                                int64_t window_right, const py::object& softcap,
                                const py::object& alibi_slopes, const py::object& sinks,
                                const py::object& ranges, const py::object& out) {
  return paged_attention<B>(as_array(q, "q", true),
                            cache_arguments(data, key_scales, value_scales, type, compute),
                            as_array(block_table, "block_table"), as_array(seq_lens, "seq_lens"),
                            optional_array(query_start, "query_start"),
                            attention_arguments(scale, causal, window_left, window_right, softcap,
                                                alibi_slopes, sinks, ranges, out));
}

void kv_cache_append_numpy(const py::object& data, const py::object& key_scales,
                           const py::object& value_scales, int64_t type, int64_t compute,
                           const py::object& key, const py::object& value,
                           const py::object& slot_mapping) {
  append_to_cache<B>(cache_arguments(data, key_scales, value_scales, type, compute),
                     as_array(key, "key", true), as_array(value, "value"),
                     as_array(slot_mapping, "slot_mapping"));
}

void kv_cache_gather_numpy(const py::object& data, const py::object& key_scales,
                           const py::object& value_scales, int64_t type, int64_t compute,
                           const py::object& slots, const py::object& key,
                           const py::object& value) {
  gather_from_cache<B>(cache_arguments(data, key_scales, value_scales, type, compute),
                       as_array(slots, "slots", true), as_array(key, "key"),
                       as_array(value, "value"));
}

void fp8_encode_numpy(const py::object& x, int64_t format, const py::object& factor,
                      const py::object& codes) {
  encode_fp8<B>(as_array(x, "x", true), format, as_double(factor, "factor"),
                as_array(codes, "codes"));
}

void fp8_decode_numpy(const py::object& codes, int64_t format, const py::object& out) {
  decode_fp8<B>(as_array(codes, "codes", true), format, as_array(out, "out"));
}

}  // namespace

void bind_numpy_attention(py::module_& m) {
  using py::arg;
  m.def("flash_attention", &flash_attention_numpy, arg("q"), arg("k"), arg("v"), arg("query_start"),
        arg("key_start"), arg("scale"), arg("causal"), arg("window_left"), arg("window_right"),
        arg("softcap"), arg("alibi_slopes"), arg("sinks"), arg("ranges"), arg("out"));
  m.def("paged_attention", &paged_attention_numpy, arg("q"), arg("data"), arg("key_scales"),
        arg("value_scales"), arg("type"), arg("compute"), arg("block_table"), arg("seq_lens"),
        arg("query_start"), arg("scale"), arg("causal"), arg("window_left"), arg("window_right"),
        arg("softcap"), arg("alibi_slopes"), arg("sinks"), arg("ranges"), arg("out"));
  m.def("kv_cache_append", &kv_cache_append_numpy, arg("data"), arg("key_scales"),
        arg("value_scales"), arg("type"), arg("compute"), arg("key"), arg("value"),
        arg("slot_mapping"));
  m.def("kv_cache_gather", &kv_cache_gather_numpy, arg("data"), arg("key_scales"),
        arg("value_scales"), arg("type"), arg("compute"), arg("slots"), arg("key"), arg("value"));
  m.def("fp8_encode", &fp8_encode_numpy, arg("x"), arg("format"), arg("factor"), arg("codes"));
  m.def("fp8_decode", &fp8_decode_numpy, arg("codes"), arg("format"), arg("out"));
}

}  // namespace capibara
