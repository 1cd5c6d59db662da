// SPDX-License-Identifier: Apache-2.0
// The operators on the arrays of a backend B, which is NumPy's or torch's:
//   B::Array                              an owning, movable reference
//   B::view_of(array, name)               its view; throws if no kernel knows its type
//   B::empty(array, view, cols)           new, like `array` but `cols` in the last dimension
//   B::contiguous_copy(array, view)
//   B::Unlocked                           held while a driver runs (releases Python's GIL)
#pragma once

#include <initializer_list>
#include <optional>
#include <utility>

#include "bindings/check.h"
#include "bindings/expect.h"

namespace capibara {

inline bool rows_readable(const TensorView& view) { return check_readable(view, false); }
inline void expect_rows_writable(const TensorView& view) { check_readable(view, true); }

// An argument that is only read: copied if the kernels cannot follow its strides.
template <class B>
struct Input {
  typename B::Array array;
  TensorView view;

  Input(typename B::Array given, const char* name,
        bool (*readable)(const TensorView&) = rows_readable)
      : array(std::move(given)), view(B::view_of(array, name)) {
    if (!readable(view)) copy();
  }
  void copy() {
    array = B::contiguous_copy(array, view);
    view = B::view_of(array, view.name);
  }
  Input& require_contiguous() {
    if (!view.contiguous()) copy();
    return *this;
  }
};

// An argument that is written in place.
template <class B>
struct Target {
  typename B::Array array;
  TensorView view;

  Target(typename B::Array given, const char* name,
         void (*expect)(const TensorView&) = expect_rows_writable)
      : array(std::move(given)), view(B::view_of(array, name)) {
    expect(view);
  }
};

// `out`, or a new array like the input with `cols` elements in the last dimension.
template <class B>
Target<B> result(std::optional<typename B::Array> out, const Input<B>& like, int64_t cols) {
  if (out) return {std::move(*out), "out"};
  return {B::empty(like.array, like.view, cols), "out"};
}

inline int64_t cols_of(const TensorView& view) { return view.dims ? view.last() : 1; }

constexpr const char kOneStride[] = "rows at one stride";
constexpr const char kTwoStrides[] = "rows at one stride or two nested ones";

// Runs check(), and once more with the inputs copied if their strides are too deeply nested.
// layout: what it expects of what is written.
template <class B, class Check>
auto check_or_copy(const char* written, std::initializer_list<Input<B>*> inputs, const Check& check,
                   const char* layout = kTwoStrides) -> decltype(check()) {
  try {
    return check();
  } catch (const NeedsCopy&) {
    for (Input<B>* input : inputs) input->copy();
  }
  try {
    return check();
  } catch (const NeedsCopy&) {
    throw std::invalid_argument(std::string(written) + ": expected " + layout + ", got more");
  }
}

using NormDriver = void (*)(const NormCall&);
using GatedDriver = void (*)(const GatedCall&);

// heads: the weight may have a row for each head (check_norm).
template <class B>
typename B::Array norm(NormDriver driver, bool heads, typename B::Array x, typename B::Array weight,
                       double eps, std::optional<typename B::Array> out) {
  Input<B> input(std::move(x), "x"), gain(std::move(weight), "weight");
  gain.require_contiguous();
  Target<B> target = result<B>(std::move(out), input, cols_of(input.view));
  const NormCall call = check_or_copy<B>(
      "out", {&input}, [&] { return check_norm(input.view, gain.view, eps, target.view, heads); });
  {
    const typename B::Unlocked unlocked;
    driver(call);
  }
  return std::move(target.array);
}

template <class B>
void fused_add_norm(typename B::Array x, typename B::Array residual, typename B::Array weight,
                    double eps) {
  Target<B> values(std::move(x), "x"), sum(std::move(residual), "residual");
  Input<B> gain(std::move(weight), "weight");
  gain.require_contiguous();
  const NormCall call = check_or_copy<B>(
      "x", {}, [&] { return check_fused_add_norm(values.view, sum.view, gain.view, eps); });
  const typename B::Unlocked unlocked;
  fused_add_rms_norm(call);
}

template <class B>
typename B::Array softmax_rows(typename B::Array x, double scale,
                               std::optional<typename B::Array> lengths,
                               std::optional<typename B::Array> out) {
  Input<B> input(std::move(x), "x");
  std::optional<Input<B>> limits;
  if (lengths) limits.emplace(std::move(*lengths), "lengths").require_contiguous();
  Target<B> target = result<B>(std::move(out), input, cols_of(input.view));
  const SoftmaxCall call = check_or_copy<B>("out", {&input}, [&] {
    return check_softmax(input.view, scale, limits ? &limits->view : nullptr, target.view);
  });
  {
    const typename B::Unlocked unlocked;
    softmax(call);
  }
  return std::move(target.array);
}

template <class B>
typename B::Array gated(GatedDriver driver, typename B::Array gate,
                        std::optional<typename B::Array> up, std::optional<typename B::Array> out) {
  Input<B> first(std::move(gate), up ? "gate" : "gate_up");
  std::optional<Input<B>> second;
  if (up) second.emplace(std::move(*up), "up");
  Target<B> target = result<B>(std::move(out), first, gated_cols(first.view, !second));
  const auto check = [&] {
    return check_gated(first.view, second ? &second->view : nullptr, target.view);
  };
  const GatedCall call = second ? check_or_copy<B>("out", {&first, &*second}, check)
                                : check_or_copy<B>("out", {&first}, check);
  {
    const typename B::Unlocked unlocked;
    driver(call);
  }
  return std::move(target.array);
}

template <class B>
void rotate(typename B::Array q, std::optional<typename B::Array> k,
            typename B::Array cos_sin_cache, typename B::Array positions, int64_t head_dim,
            bool neox) {
  Target<B> queries(std::move(q), "q");
  std::optional<Target<B>> keys;
  if (k) keys.emplace(std::move(*k), "k");
  Input<B> cache(std::move(cos_sin_cache), "cos_sin_cache"), at(std::move(positions), "positions");
  cache.require_contiguous();
  at.require_contiguous();
  const RopeArgs call =
      check_rope(queries.view, keys ? &keys->view : nullptr, cache.view, at.view, head_dim, neox);
  const typename B::Unlocked unlocked;
  rope(call, at.view.shape[0]);
}

}  // namespace capibara
