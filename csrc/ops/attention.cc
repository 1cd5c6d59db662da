// SPDX-License-Identifier: Apache-2.0
#include "ops/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/buffer.h"
#include "base/rounding.h"
#include "kernels/attention/attention.h"
#include "kernels/gemm/pack.h"
#include "ops/attention_keys.h"
#include "ops/attention_plan.h"
#include "ops/gemm_packed.h"
#include "ops/parallel.h"
#include "ops/registry.h"

namespace capibara {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

DType dtype_of(Packed packed) {
  return packed == Packed::kF32 ? DType::kF32 : packed == Packed::kF16 ? DType::kF16 : DType::kBF16;
}

// The functions of one call, looked up once.
struct Functions {
  PackFn* pack_lines = pack_lines_kernels().chosen().run;
  AttentionSoftmaxFn* softmax = attention_softmax_kernels().chosen().run;
  AttentionRescaleFn* rescale = attention_rescale_kernels().chosen().run;
  AttentionFinishFn* finish = attention_finish_kernels().chosen().run;
};

const Functions& functions() {
  static const Functions all;
  return all;
}

// Cuts a run of memory into arrays that begin at cache lines. From a null pointer, `bytes` tells
// how much it takes.
class Carver {
 public:
  explicit Carver(char* memory) : begin_(reinterpret_cast<uintptr_t>(memory)), next_(begin_) {}

  template <class T = char>
  T* take(int64_t count) {
    T* const array = reinterpret_cast<T*>(next_);
    next_ += (static_cast<uintptr_t>(count) * sizeof(T) + 63) / 64 * 64;
    return array;
  }

  size_t bytes() const { return next_ - begin_; }

 private:
  uintptr_t begin_, next_;
};

class Attention {
 public:
  explicit Attention(const AttentionCall& call)
      : call_(call),
        kernel_(gemm_kernel(gemm_type_of(call.dtype))),
        plan_(plan_attention(call, kernel_)),
        keys_(call, kernel_, plan_.keys_per_block),
        group_(call.num_heads / call.num_kv_heads),
        unit_(attention_unit(kernel_)),
        dim_(keys_.padded_head_dim()),
        size_a_(size_of(kernel_.a)),
        size_b_(size_of(kernel_.b)) {}

  void run() {
    thread_local Scratch memory;
    parts_ = Parts(*this, nullptr);
    parts_ = Parts(*this, static_cast<char*>(memory.get(parts_.bytes)));

    // Whoever is done takes the next task; the last ones, which see most keys, come first.
    std::atomic<int64_t> left{static_cast<int64_t>(plan_.tasks.size())};
    const auto work = [&](int64_t, int64_t) {
      thread_local Scratch scratch;
      Workspace space(*this, nullptr);
      space = Workspace(*this, static_cast<char*>(scratch.get(space.bytes)));
      for (int64_t i = --left; i >= 0; i = --left) {
        run_task(plan_.tasks[static_cast<size_t>(i)], space);
      }
    };
    run_on_threads(plan_.threads, work);
    for (const AttentionJoin& join : plan_.joins) finish_join(join);
  }

 private:
  // Where the sums of each part of a split sequence are until they are joined.
  struct Parts {
    Parts() = default;
    Parts(const Attention& a, char* memory) {
      const int64_t rows = a.plan_.parts * kMaxTileRows;
      Carver carver(memory);
      sums = carver.take<float>(rows * a.dim_);
      maxima = carver.take<float>(rows);
      totals = carver.take<float>(rows);
      bytes = carver.bytes();
    }

    float* sums;  // [parts][kMaxTileRows][head_dim, padded]
    float* maxima;
    float* totals;
    size_t bytes;
  };

  // What a thread writes to.
  struct Workspace {
    Workspace(const Attention& a, char* memory) {
      const int64_t rows = a.plan_.rows_per_task, panels = rows / a.kernel_.rows;
      const int64_t block = a.plan_.keys_per_block;
      const int64_t most = kMaxTileRows;
      Carver carver(memory);
      queries = carver.take(rows * a.call_.head_dim * 4);
      query_panels = carver.take(rows * a.call_.head_dim * a.size_a_);
      sums = carver.take<float>(rows * a.dim_);
      maxima = carver.take<float>(panels * most);
      totals = carver.take<float>(panels * most);
      visible = carver.take<KeyRange>(rows);
      started = carver.take<bool>(panels);
      scores = carver.take<float>(most * block);
      p_rows = carver.take(most * block * a.size_a_);
      p_panel = carver.take(most * block * a.size_a_);
      decoded = carver.take(kPanelsDecoded * a.panel_bytes());
      keys = carver.take(static_cast<int64_t>(a.keys_.scratch_bytes()));
      bytes = carver.bytes();
    }

    char* queries;       // gathered, where they do not lie at one stride
    char* query_panels;  // as the tiles want them
    float* sums;         // [rows][head_dim, padded], not yet divided by totals
    float* maxima;       // [panels][kMaxTileRows]
    float* totals;
    KeyRange* visible;  // by each row
    bool* started;      // panels that have sums
    float* scores;      // of a panel, as all that follows
    char* p_rows;
    char* p_panel;
    char* decoded;  // some panels of a coded block
    char* keys;
    size_t bytes;
  };

  // As many as a tile takes at a time.
  static constexpr int64_t kPanelsDecoded = 4;
  int64_t panels_decoded(int rows) const {
    const int wide = rows <= kMaxWideRows ? kernel_.wide[rows - 1].panels : 0;
    return std::clamp<int64_t>(wide, 1, kPanelsDecoded);
  }
  // Of the largest that is decoded: of keys, or of values.
  int64_t panel_bytes() const {
    return kernel_.cols * std::max(call_.head_dim, plan_.keys_per_block) * size_b_;
  }

  template <class F>
  static void run_on_threads(int threads, F f) {
    if (threads <= 1) {
      f(int64_t{0}, int64_t{1});
      return;
    }
    run_ranges(
        threads, threads,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
        &f);
  }

  int rows_of(const AttentionTask& task, int64_t panel) const {
    return static_cast<int>(std::min<int64_t>(kernel_.rows, task.rows - panel * kernel_.rows));
  }

  void run_task(const AttentionTask& task, Workspace space) const {
    if (task.part >= 0) {
      space.sums = parts_.sums + task.part * kMaxTileRows * dim_;
      space.maxima = parts_.maxima + task.part * kMaxTileRows;
      space.totals = parts_.totals + task.part * kMaxTileRows;
    }
    const int64_t panels = divide_up(task.rows, kernel_.rows);
    std::fill(space.maxima, space.maxima + panels * kMaxTileRows, kLowest);
    std::fill(space.totals, space.totals + panels * kMaxTileRows, 0.0f);
    std::fill(space.started, space.started + panels, false);
    pack_queries(task, space);
    find_visible(task, space);

    KeyBlock block;
    for (int64_t first = task.key_begin / plan_.keys_per_block * plan_.keys_per_block;
         first < task.key_end; first += plan_.keys_per_block) {
      keys_.load(task.sequence, task.kv_head, first, std::max<int64_t>(task.key_begin - first, 0),
                 std::min(task.key_end - first, plan_.keys_per_block), panels == 1, space.keys,
                 block);
      for (int64_t p = 0; p < panels; ++p) run_panel(task, p, first, block, space);
    }
    for (int64_t p = 0; p < panels; ++p) {
      if (!space.started[p]) {
        std::fill_n(space.sums + p * kernel_.rows * dim_, rows_of(task, p) * dim_, 0.0f);
      }
      if (task.part < 0) finish_panel(task, p, space);
    }
  }

  // Row r is head r % group of the query r / group.
  const char* query(const AttentionTask& task, int64_t row) const {
    const int64_t token = call_.query_start[task.sequence] + row / group_;
    const int64_t head = task.kv_head * group_ + row % group_;
    return static_cast<const char*>(call_.q.data) +
           (token * call_.q.token_stride + head * call_.q.head_stride) *
               static_cast<int64_t>(size_of(call_.dtype));
  }

  void pack_queries(const AttentionTask& task, const Workspace& space) const {
    const bool one_token = task.first_row / group_ == (task.first_row + task.rows - 1) / group_;
    const char* rows = query(task, task.first_row);
    int64_t stride = group_ == 1 ? call_.q.token_stride : call_.q.head_stride;
    if (group_ > 1 && !one_token && call_.q.token_stride != group_ * call_.q.head_stride) {
      const auto bytes = call_.head_dim * static_cast<int64_t>(size_of(call_.dtype));
      for (int64_t r = 0; r < task.rows; ++r) {
        std::memcpy(space.queries + r * bytes, query(task, task.first_row + r),
                    static_cast<size_t>(bytes));
      }
      rows = space.queries;
      stride = call_.head_dim;
    }
    const auto element = static_cast<int64_t>(size_of(call_.dtype));
    for (int64_t p = 0; p * kernel_.rows < task.rows; ++p) {
      const int count = rows_of(task, p);
      functions().pack_lines({call_.dtype, rows + p * kernel_.rows * stride * element, stride,
                              count, call_.head_dim, kernel_.a, kernel_.packed_rows(count),
                              kernel_.depth, nullptr,
                              space.query_panels + p * kernel_.rows * call_.head_dim * size_a_});
    }
  }

  void find_visible(const AttentionTask& task, const Workspace& space) const {
    const int64_t queries = call_.query_start[task.sequence + 1] - call_.query_start[task.sequence];
    const int64_t offset = call_.key_lengths[task.sequence] - queries;
    for (int64_t r = 0; r < task.rows; ++r) {
      const int64_t row = task.first_row + r;
      if (r > 0 && row % group_ != 0) {
        space.visible[r] = space.visible[r - 1];
        continue;
      }
      KeyRange keys = visible_keys(call_, task.sequence, offset + row / group_);
      keys.begin = std::max(keys.begin, task.key_begin);
      keys.end = std::min(keys.end, task.key_end);
      space.visible[r] = keys;
    }
  }

  // The block's part in the sums of a panel of rows.
  void run_panel(const AttentionTask& task, int64_t panel, int64_t first, const KeyBlock& block,
                 const Workspace& space) const {
    const int rows = rows_of(task, panel), packed_rows = kernel_.packed_rows(rows);
    int32_t begin[kMaxTileRows] = {}, end[kMaxTileRows] = {};
    int64_t from = plan_.keys_per_block, to = 0;
    for (int r = 0; r < rows; ++r) {
      const KeyRange& keys = space.visible[panel * kernel_.rows + r];
      begin[r] = static_cast<int32_t>(std::clamp<int64_t>(keys.begin - first, 0, kMaxKeysPerBlock));
      end[r] = static_cast<int32_t>(std::clamp<int64_t>(keys.end - first, 0, plan_.keys_per_block));
      if (begin[r] >= end[r]) continue;
      from = std::min<int64_t>(from, begin[r]);
      to = std::max<int64_t>(to, end[r]);
    }
    if (from >= to) return;
    // Columns from here on are those of `scores`.
    from = from / unit_ * unit_;
    const int64_t columns = divide_up(to - from, unit_) * unit_;
    for (int r = 0; r < rows; ++r) {
      const bool sees_any = begin[r] < end[r];
      begin[r] = sees_any ? begin[r] - static_cast<int32_t>(from) : 0;
      end[r] = sees_any ? end[r] - static_cast<int32_t>(from) : 0;
    }
    multiply_keys(panel, rows, from, columns, block, space);

    float corrections[kMaxTileRows];
    const char* const p = softmax(task, panel, rows, packed_rows, first + from, columns, begin, end,
                                  {block.key_scales ? block.key_scales + from : nullptr,
                                   block.value_scales ? block.value_scales + from : nullptr},
                                  corrections, space);
    float* const sums = space.sums + panel * kernel_.rows * dim_;
    if (space.started[panel]) functions().rescale({rows, dim_, sums, dim_, corrections});
    multiply_values(rows, packed_rows, from, to, block, p, sums, space.started[panel], space);
    space.started[panel] = true;
  }

  void multiply_keys(int64_t panel, int rows, int64_t from, int64_t columns, const KeyBlock& block,
                     const Workspace& space) const {
    const char* const queries =
        space.query_panels + panel * kernel_.rows * call_.head_dim * size_a_;
    for (int64_t s = 0; s < block.segments; ++s) {
      const KeySegment& segment = block.segment[s];
      const int64_t begin = std::max(segment.begin, from);
      const int64_t end = std::min(segment.end, from + columns);
      if (begin >= end) continue;
      const char* const panels =
          segment.keys + (begin - segment.begin) / kernel_.cols * segment.key_panel_stride;
      multiply(rows, divide_up(end - begin, kernel_.cols), call_.head_dim, queries, panels,
               segment.key_panel_stride, space.scores + begin - from, plan_.keys_per_block, false,
               block.coded, call_.head_dim, space);
    }
  }

  // Rows times panels of keys or values, `depth` elements along K, which may be coded. Those along
  // K from `valid` on are zeros then, whatever their codes are.
  void multiply(int rows, int64_t panels, int64_t depth, const char* left, const char* right,
                int64_t panel_stride, float* c, int64_t ldc, bool accumulate, bool coded,
                int64_t valid, const Workspace& space) const {
    const int64_t steps = divide_up(depth, kernel_.depth);
    if (!coded) {
      kernel_.multiply(rows, panels, steps, left, right, panel_stride, c, ldc, accumulate);
      return;
    }
    const int64_t codes = steps * kernel_.depth * kernel_.cols, stride = codes * size_b_;
    const int64_t at_once = panels_decoded(rows);
    for (int64_t p = 0; p < panels; p += at_once) {
      const int64_t count = std::min(at_once, panels - p);
      for (int64_t i = p; i < p + count; ++i) {
        char* const panel = space.decoded + (i - p) * stride;
        keys_.decode(right + i * panel_stride, codes, panel);
        if (valid < steps * kernel_.depth) clear_from(valid, steps - 1, panel);
      }
      kernel_.multiply(rows, count, steps, left, space.decoded, stride, c + p * kernel_.cols, ldc,
                       accumulate);
    }
  }

  // Elements along K from `valid` on, in the last group of a panel.
  void clear_from(int64_t valid, int64_t group, char* panel) const {
    const int64_t kept = valid - group * kernel_.depth;
    char* const last = panel + group * kernel_.depth * kernel_.cols * size_b_;
    for (int64_t c = 0; c < kernel_.cols; ++c) {
      std::memset(last + (c * kernel_.depth + kept) * size_b_, 0,
                  static_cast<size_t>((kernel_.depth - kept) * size_b_));
    }
  }

  struct TokenScales {
    const float* keys;
    const float* values;
  };

  // The exponentials as the tiles want them.
  const char* softmax(const AttentionTask& task, int64_t panel, int rows, int packed_rows,
                      int64_t first_key, int64_t columns, const int32_t* begin, const int32_t* end,
                      TokenScales scales, float* corrections, const Workspace& space) const {
    float slopes[kMaxTileRows], offsets[kMaxTileRows];
    if (call_.alibi_slopes) {
      const int64_t queries =
          call_.query_start[task.sequence + 1] - call_.query_start[task.sequence];
      for (int r = 0; r < packed_rows; ++r) {
        const int64_t row = task.first_row + panel * kernel_.rows + std::min(r, rows - 1);
        const int64_t position = call_.key_lengths[task.sequence] - queries + row / group_;
        slopes[r] = call_.alibi_slopes[task.kv_head * group_ + row % group_];
        offsets[r] = slopes[r] * static_cast<float>(first_key - position);
      }
    }
    // Tiles that take four elements along K at a time have a row's next to each other.
    const bool atoms = kernel_.a == Packed::kBF16 && kernel_.depth == 4 && packed_rows > 1;
    const bool in_place = kernel_.a == Packed::kF32;
    const bool as_panel = atoms || (packed_rows == 1 && !in_place);
    char* const p = in_place   ? reinterpret_cast<char*>(space.scores)
                    : as_panel ? space.p_panel
                               : space.p_rows;
    const int64_t stride = plan_.keys_per_block;
    functions().softmax({packed_rows, columns, space.scores, stride, begin, end,
                         call_.scale * keys_.key_scale(task.kv_head), call_.softcap,
                         call_.alibi_slopes ? slopes : nullptr,
                         call_.alibi_slopes ? offsets : nullptr, scales.keys, scales.values,
                         space.maxima + panel * kMaxTileRows, space.totals + panel * kMaxTileRows,
                         corrections, kernel_.a, p, stride, atoms});
    if (as_panel || packed_rows == 1) return p;
    functions().pack_lines({dtype_of(kernel_.a), p, stride, packed_rows, columns, kernel_.a,
                            packed_rows, kernel_.depth, nullptr, space.p_panel});
    return space.p_panel;
  }

  void multiply_values(int rows, int packed_rows, int64_t from, int64_t to, const KeyBlock& block,
                       const char* p, float* sums, bool accumulate, const Workspace& space) const {
    // Of all dimensions: keys [begin, end) of the block, whose values are at `values`.
    const auto multiply_run = [&](int64_t begin, int64_t end, const char* values,
                                  int64_t panel_stride) {
      multiply(rows, dim_ / kernel_.cols, end - begin, p + (begin - from) * packed_rows * size_a_,
               values, panel_stride, sums, dim_, accumulate, block.coded, block.left - begin,
               space);
      accumulate = true;
    };
    const int64_t element = block.coded ? 1 : size_b_;
    for (int64_t s = 0; s < block.segments; ++s) {
      const KeySegment& segment = block.segment[s];
      const int64_t begin = std::max(segment.begin, from);
      const int64_t end = std::min({segment.end, to, block.tail_begin});
      if (begin >= end) continue;
      multiply_run(begin, end, segment.values + (begin - segment.begin) * kernel_.cols * element,
                   segment.value_panel_stride);
    }
    if (to > block.tail_begin) {
      multiply_run(block.tail_begin, to, block.tail_values, kernel_.cols * kernel_.depth * size_b_);
    }
  }

  // What a row's sums are multiplied with: its softmax's denominator, and the values' scale.
  float last_factor(const AttentionTask& task, int64_t row, float maximum, float total,
                    bool sees_keys) const {
    if (!sees_keys) return 0.0f;
    float scale = keys_.value_scale(task.kv_head);
    if (call_.sinks) {
      const float sink = call_.sinks[task.kv_head * group_ + row % group_] * kLog2E;
      const float largest = std::max(maximum, sink);
      const float subtrahend = largest == kLowest ? 0.0f : largest;
      const float correction = maximum == kLowest ? 0.0f : std::exp2(maximum - subtrahend);
      total = total * correction + std::exp2(sink - subtrahend);
      scale *= correction;
    }
    return scale / total;
  }

  void finish_panel(const AttentionTask& task, int64_t panel, const Workspace& space) const {
    const int rows = rows_of(task, panel);
    float factors[kMaxTileRows];
    void* out[kMaxTileRows];
    for (int r = 0; r < rows; ++r) {
      const int64_t at = panel * kernel_.rows + r, row = task.first_row + at;
      const KeyRange& keys = space.visible[at];
      factors[r] = last_factor(task, row, space.maxima[panel * kMaxTileRows + r],
                               space.totals[panel * kMaxTileRows + r], keys.begin < keys.end);
      const int64_t token = call_.query_start[task.sequence] + row / group_;
      const int64_t head = task.kv_head * group_ + row % group_;
      out[r] = static_cast<char*>(call_.out) +
               (token * call_.out_token_stride + head * call_.out_head_stride) *
                   static_cast<int64_t>(size_of(call_.dtype));
    }
    functions().finish({rows, call_.head_dim, space.sums + panel * kernel_.rows * dim_, dim_,
                        factors, call_.dtype, out});
  }

  // The parts' sums become the first one's, in their order.
  void finish_join(const AttentionJoin& join) const {
    AttentionTask task = {join.sequence, join.kv_head, 0, 0, 0, 0, -1};
    task.key_end = call_.key_lengths[join.sequence];
    task.rows = (call_.query_start[join.sequence + 1] - call_.query_start[join.sequence]) * group_;
    Workspace space(*this, nullptr);
    space.sums = parts_.sums + join.first_part * kMaxTileRows * dim_;
    space.maxima = parts_.maxima + join.first_part * kMaxTileRows;
    space.totals = parts_.totals + join.first_part * kMaxTileRows;
    for (int64_t r = 0; r < task.rows; ++r) {
      float largest = kLowest;
      for (int64_t i = 0; i < join.count; ++i) {
        largest = std::max(largest, space.maxima[i * kMaxTileRows + r]);
      }
      const float subtrahend = largest == kLowest ? 0.0f : largest;
      float* const sums = space.sums + r * dim_;
      float total = 0.0f;
      for (int64_t i = 0; i < join.count; ++i) {
        const float weight = std::exp2(space.maxima[i * kMaxTileRows + r] - subtrahend);
        const float* const part = sums + i * kMaxTileRows * dim_;
        total += weight * space.totals[i * kMaxTileRows + r];
        for (int64_t d = 0; d < call_.head_dim; ++d) {
          sums[d] = weight * part[d] + (i == 0 ? 0.0f : sums[d]);
        }
      }
      space.maxima[r] = largest;
      space.totals[r] = total;
    }
    KeyRange visible[kMaxTileRows];
    space.visible = visible;
    find_visible(task, space);
    finish_panel(task, 0, space);
  }

  const AttentionCall& call_;
  const GemmKernel& kernel_;
  const AttentionPlan plan_;
  const KeySource keys_;
  const int64_t group_, unit_;
  const int64_t dim_;  // head_dim, padded to whole panels
  const int64_t size_a_, size_b_;
  Parts parts_ = {};
};

}  // namespace

void attention(const AttentionCall& call) {
  count_call(Op::attention);
  if (call.sequences > 0) Attention(call).run();
}

}  // namespace capibara
