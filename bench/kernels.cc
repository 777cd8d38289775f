// Linears and the experts' FFN over 1 to 512 tokens, against ggml's, in one run: contenders alternate, medians are
// printed. Weights stream from memory: each call reads those that were read longest ago, of --stream-bytes in all.
//
//   drafthorse-kernel-bench [--types q4_K,q8_0] [--shapes 4096x14336] [--tokens 1,4,8] [--rounds 5] [--threads 2]
//                           [--isa NAME] [--ffn | --linear] [--no-ggml] [--json]
//
// Per line: time over that of one token, weight bytes per second over what the cores read from memory, multiplications
// per second over what they can do, and ggml's time over ours: with weights as the file holds them, and repacked as
// llama.cpp does at loading where ggml can.
#include <fmt/format.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/units.h"
#include "base/worker_pool.h"
#include "ops/expert_ffn.h"

namespace drafthorse {
namespace {

struct Options {
  std::vector<std::string> types{"q4_K", "q8_0", "q4_0", "q6_K", "bf16"};
  std::vector<std::string> shapes{"4096x14336", "2048x768", "2048x1408"};
  std::vector<int> tokens{1, 2, 4, 8, 16, 64, 512};
  int rounds = 5;
  int threads = 2;
  std::string isa;
  bool ffn_only = false;
  bool linear_only = false;
  bool no_ggml = false;
  bool json = false;
  uint64_t stream_bytes = 512 * kMiB;
};

double timed(const std::function<void()>& work) {
  const SteadyClock clock;
  const int64_t start = clock.now_ns();
  work();
  return seconds(clock.now_ns() - start);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// What all cores together read from memory, and multiply.
struct Peaks {
  double bytes_per_s = 0;
  double byte_products_per_s = 0;
  double float_products_per_s = 0;
};

Peaks measure_peaks(WorkerPool& pool, const ops::simd::Kernels& kernels, const std::byte* memory, uint64_t bytes) {
  Peaks peaks;
  for (int round = 0; round < 5; ++round) {
    std::vector<int32_t> sums(static_cast<size_t>(pool.threads()));
    const auto part = static_cast<int64_t>(bytes / static_cast<uint64_t>(pool.threads()) / 1024 * 1024);
    const double read = timed([&] {
      pool.run(pool.threads(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) sums[i] = kernels.read_memory(memory + i * part, part);
      });
    });
    peaks.bytes_per_s = std::max(peaks.bytes_per_s, static_cast<double>(part) * pool.threads() / read);
    constexpr int64_t kRounds = 3'000'000;
    std::vector<int64_t> done(static_cast<size_t>(pool.threads()));
    const auto rate = [&](const auto& work) {
      const double time = timed([&] {
        pool.run(pool.threads(), 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) done[i] = work();
        });
      });
      return static_cast<double>(std::accumulate(done.begin(), done.end(), int64_t{0})) / time;
    };
    peaks.byte_products_per_s = std::max(peaks.byte_products_per_s, rate([&] {
                                           int32_t sink = 3;
                                           const int64_t count = kernels.peak_of_bytes(kRounds, &sink);
                                           return sink == 1 ? count + 1 : count;
                                         }));
    peaks.float_products_per_s = std::max(peaks.float_products_per_s, rate([&] {
                                            float sink = 0.5F;
                                            const int64_t count = kernels.peak_of_floats(kRounds, &sink);
                                            return sink == 1 ? count + 1 : count;
                                          }));
  }
  return peaks;
}

// Experts' matrices in memory of one kind, enough of them to stream, and the graphs over them.
//
// A linear is one matrix [columns, rows] of a bank; the FFN is `active` experts with gate, up: [n_embd, n_ff] and
// down: [n_ff, n_embd], each for all tokens.
struct Shape {
  int64_t n_embd = 0;
  int64_t n_ff = 0;
  int active = 1;  // experts per call of the FFN
};

// Rows that the type's blocks do not divide are kept as Q8_0, as quantisers do.
ggml_type down_type(ggml_type type, const Shape& shape) {
  return shape.n_ff % ggml_blck_size(type) == 0 ? type : GGML_TYPE_Q8_0;
}

struct FreeGgml {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};
using Context = std::unique_ptr<ggml_context, FreeGgml>;
using Buffer = std::unique_ptr<ggml_backend_buffer, FreeGgml>;

Context new_context() {
  return Context(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
}

// Banks of experts in ggml tensors [columns, rows, experts], in plain or in repacked memory.
struct Banks {
  // The first of `count` experts, at most all, that were read longest ago. One order for all who read these banks:
  // what one of them has just read is in a cache, and would be so for the next one.
  int64_t take(int64_t count) {
    const int64_t first = next_expert;
    next_expert = (next_expert + count) % gate->ne[2];
    return first;
  }
  int64_t next_expert = 0;
  Context context = new_context();
  Arena arena;  // of plain memory: in huge pages, as the engine keeps experts
  Buffer buffer;
  ggml_tensor* gate = nullptr;
  ggml_tensor* up = nullptr;
  ggml_tensor* down = nullptr;
};

std::optional<Banks> make_banks(ggml_backend_buffer_type_t kind, ggml_type type, const Shape& shape, int64_t experts,
                                bool plain, const Banks* source) {
  Banks banks;
  banks.gate = ggml_new_tensor_3d(banks.context.get(), type, shape.n_embd, shape.n_ff, experts);
  banks.up = ggml_new_tensor_3d(banks.context.get(), type, shape.n_embd, shape.n_ff, experts);
  banks.down = ggml_new_tensor_3d(banks.context.get(), down_type(type, shape), shape.n_ff, shape.n_embd, experts);
  if (plain) {
    uint64_t total = 0;
    for (const ggml_tensor* tensor : {banks.gate, banks.up, banks.down}) total += align_up(ggml_nbytes(tensor), 64);
    Result<Arena> arena = Arena::reserve(total);
    if (!arena.ok()) return std::nullopt;
    banks.arena = std::move(arena).value();
    banks.buffer.reset(ggml_backend_cpu_buffer_from_ptr(banks.arena.data(), total));
    std::byte* at = banks.arena.data();
    for (ggml_tensor* tensor : {banks.gate, banks.up, banks.down}) {
      ggml_backend_tensor_alloc(banks.buffer.get(), tensor, at);
      at += align_up(ggml_nbytes(tensor), 64);
    }
  } else {
    banks.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(banks.context.get(), kind));
    if (banks.buffer == nullptr) return std::nullopt;
  }
  std::mt19937_64 random(1);
  for (ggml_tensor* tensor : {banks.gate, banks.up, banks.down}) {
    if (!plain) {
      if (tensor->extra == nullptr) return std::nullopt;  // this kind of memory has no other layout for the type
      const ggml_tensor* from = tensor == banks.gate ? source->gate : tensor == banks.up ? source->up : source->down;
      ggml_backend_tensor_set(tensor, from->data, 0, ggml_nbytes(tensor));
      continue;
    }
    // One quantised row's worth of random weights, repeated: time does not depend on values.
    std::vector<float> row(static_cast<size_t>(tensor->ne[0]));
    std::normal_distribution<float> normal(0, 0.02F);
    for (float& value : row) value = normal(random);
    std::vector<std::byte> packed(tensor->nb[1]);
    ggml_quantize_chunk(tensor->type, row.data(), packed.data(), 0, 1, tensor->ne[0], nullptr);
    for (int64_t r = 0; r < tensor->ne[1] * tensor->ne[2]; ++r) {
      std::memcpy(static_cast<std::byte*>(tensor->data) + static_cast<size_t>(r) * tensor->nb[1], packed.data(),
                  packed.size());
    }
  }
  return banks;
}

// The kind of memory in which ggml repacks weights of this type; nullptr where it does not.
ggml_backend_buffer_type_t repacking_buffers() {
  const auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
  if (get == nullptr) return nullptr;
  ggml_backend_buffer_type_t* all = get(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0));
  for (; all != nullptr && *all != nullptr; ++all) {
    if (std::string(ggml_backend_buft_name(*all)) == "CPU_REPACK") return *all;
  }
  return nullptr;
}

// One ggml graph, set up anew for other experts without being rebuilt: weights are chosen by ids (FFN) or by a view.
class GgmlWork {
 public:
  GgmlWork(Banks& banks, const Shape& shape, int tokens, int threads, bool ffn)
      : banks_(banks), backend_(ggml_backend_cpu_init()) {
    ggml_backend_cpu_set_n_threads(backend_, threads);
    ggml_context* c = context_.get();
    graph_ = ggml_new_graph(c);
    if (ffn) {
      x_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, shape.n_embd, 1, tokens);
      ids_ = ggml_new_tensor_2d(c, GGML_TYPE_I32, shape.active, tokens);
      ggml_tensor* gate = ggml_mul_mat_id(c, banks.gate, x_, ids_);
      ggml_tensor* up = ggml_mul_mat_id(c, banks.up, x_, ids_);
      ggml_build_forward_expand(graph_, ggml_mul_mat_id(c, banks.down, ggml_swiglu_split(c, gate, up), ids_));
    } else {
      // A bank of one call each: ids choose the matrix here as well, and all tokens the same.
      x_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, shape.n_embd, 1, tokens);
      ids_ = ggml_new_tensor_2d(c, GGML_TYPE_I32, 1, tokens);
      ggml_build_forward_expand(graph_, ggml_mul_mat_id(c, banks.gate, x_, ids_));
    }
    buffer_.reset(ggml_backend_alloc_ctx_tensors(c, backend_));
    std::vector<float> x(static_cast<size_t>(ggml_nelements(x_)));
    std::mt19937_64 random(2);
    for (float& value : x) value = static_cast<float>(random() % 1000) / 500 - 1;
    ggml_backend_tensor_set(x_, x.data(), 0, ggml_nbytes(x_));
  }
  ~GgmlWork() { ggml_backend_free(backend_); }
  GgmlWork(const GgmlWork&) = delete;
  GgmlWork& operator=(const GgmlWork&) = delete;

  double run() {
    std::vector<int32_t> ids(static_cast<size_t>(ggml_nelements(ids_)));
    const int64_t active = ids_->ne[0];
    const int64_t first = banks_.take(active);
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<int32_t>((first + static_cast<int64_t>(i) % active) % banks_.gate->ne[2]);
    }
    ggml_backend_tensor_set(ids_, ids.data(), 0, ggml_nbytes(ids_));
    return timed([&] { ggml_backend_graph_compute(backend_, graph_); });
  }

 private:
  Banks& banks_;
  ggml_backend_t backend_;
  Context context_ = new_context();
  Buffer buffer_;
  ggml_cgraph* graph_ = nullptr;
  ggml_tensor* x_ = nullptr;
  ggml_tensor* ids_ = nullptr;
};

class OurWork {
 public:
  OurWork(Banks& banks, const Shape& shape, int tokens, const ops::Processor& processor, bool ffn)
      : banks_(banks), shape_(shape), tokens_(tokens), processor_(processor), ffn_(ffn) {
    std::mt19937_64 random(2);
    x_.resize(static_cast<size_t>(shape.n_embd * tokens));
    for (float& value : x_) value = static_cast<float>(random() % 1000) / 500 - 1;
    const ops::ActivationFormat format = ops::activation_format(banks.gate->type);
    row_bytes_ = ops::activation_row_bytes(format, shape.n_embd);
    input_.resize(row_bytes_ * static_cast<size_t>(tokens));
    for (int t = 0; t < tokens; ++t) rows_.push_back(input_.data() + row_bytes_ * static_cast<size_t>(t));
    const auto rows = static_cast<size_t>(tokens) * static_cast<size_t>(shape.active);
    for (size_t r = 0; r < rows; ++r) token_of_row_.push_back(static_cast<int32_t>(r % static_cast<size_t>(tokens)));
    hidden_.resize(rows * static_cast<size_t>(shape.n_ff));
    hidden_quantized_.resize(rows * ops::activation_row_bytes(ops::activation_format(banks.down->type), shape.n_ff));
    output_.resize(rows * static_cast<size_t>(std::max(shape.n_embd, shape.n_ff)));
    work_.resize(static_cast<size_t>(shape.active));
  }

  double run() {
    const int64_t first = banks_.take(ffn_ ? shape_.active : 1);
    return timed([&] {
      const ops::ActivationFormat format = ops::activation_format(banks_.gate->type);
      processor_.pool.run(tokens_, 8, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          ops::write_activation_row(processor_.kernels, x_.data() + t * shape_.n_embd,
                                    input_.data() + row_bytes_ * static_cast<size_t>(t), shape_.n_embd, format);
        }
      });
      if (ffn_) {
        for (int a = 0; a < shape_.active; ++a) {
          const int64_t expert = (first + a) % banks_.gate->ne[2];
          work_[a] = {{matrix(banks_.gate, expert), matrix(banks_.up, expert), matrix(banks_.down, expert)},
                      a * tokens_,
                      (a + 1) * tokens_};
        }
        ops::run_experts({{input_.data(), row_bytes_},
                          token_of_row_,
                          work_,
                          hidden_.data(),
                          hidden_quantized_.data(),
                          output_.data()},
                         processor_);
      } else {
        const ops::WeightMatrix w = matrix(banks_.gate, first);
        processor_.pool.run(w.rows, ops::row_grain(w.rows, w.columns * tokens_, processor_.pool.threads()),
                            [&](int64_t begin, int64_t end) {
                              ops::linear_rows(processor_.kernels, w, rows_, output_.data(), w.rows, begin, end);
                            });
      }
    });
  }

  // Only reads as many bytes as run() does: the measure of its bandwidth, taken in the same breath.
  double read() {
    const int experts = ffn_ ? shape_.active : 1;
    const int64_t first = banks_.take(experts);
    return timed([&] {
      for (int a = 0; a < experts; ++a) {
        const int64_t expert = (first + a) % banks_.gate->ne[2];
        read_matrix(matrix(banks_.gate, expert));
        if (!ffn_) continue;
        read_matrix(matrix(banks_.up, expert));
        read_matrix(matrix(banks_.down, expert));
      }
    });
  }

 private:
  void read_matrix(const ops::WeightMatrix& w) {
    constexpr int64_t kStep = 1024;
    constexpr int64_t kGrain = 128;
    const auto bytes = static_cast<int64_t>(w.row_bytes) * w.rows;
    processor_.pool.run(bytes / kStep, kGrain, [&](int64_t begin, int64_t end) {
      sink_ += processor_.kernels.read_memory(w.data + begin * kStep, static_cast<size_t>((end - begin) * kStep));
    });
  }
  static ops::WeightMatrix matrix(const ggml_tensor* bank, int64_t expert) {
    return {static_cast<const std::byte*>(bank->data) + static_cast<size_t>(expert) * bank->nb[2], bank->type,
            bank->ne[0], bank->ne[1], bank->nb[1]};
  }
  Banks& banks_;
  Shape shape_;
  int tokens_;
  ops::Processor processor_;
  bool ffn_;
  std::atomic<int32_t> sink_ = 0;
  std::vector<float> x_;
  size_t row_bytes_ = 0;
  std::vector<std::byte> input_;
  std::vector<const std::byte*> rows_;
  std::vector<int32_t> token_of_row_;
  std::vector<float> hidden_;
  std::vector<std::byte> hidden_quantized_;
  std::vector<float> output_;
  std::vector<ops::ExpertWork> work_;
};

struct Bench {
  const Options& options;
  WorkerPool& pool;
  const ops::simd::Kernels& kernels;
  Peaks peaks;

  void run(const std::string& type_name, ggml_type type, const Shape& shape) const {
    const uint64_t expert_bytes =
        2 * ggml_row_size(type, shape.n_embd) * static_cast<uint64_t>(shape.n_ff) +
        ggml_row_size(down_type(type, shape), shape.n_ff) * static_cast<uint64_t>(shape.n_embd);
    const auto experts = static_cast<int64_t>(
        std::max<uint64_t>(2 * static_cast<uint64_t>(shape.active), options.stream_bytes / expert_bytes + 1));
    std::optional<Banks> plain = make_banks(ggml_backend_cpu_buffer_type(), type, shape, experts, true, nullptr);
    if (!plain) {
      fmt::print(stderr, "not enough memory for experts of {}\n", type_name);
      return;
    }
    std::optional<Banks> repacked;
    if (const ggml_backend_buffer_type_t kind = options.no_ggml ? nullptr : repacking_buffers(); kind != nullptr) {
      repacked = make_banks(kind, type, shape, experts, false, &*plain);
    }
    for (const bool ffn : {false, true}) {
      if ((ffn && options.linear_only) || (!ffn && options.ffn_only)) continue;
      const uint64_t bytes = ffn ? expert_bytes * static_cast<uint64_t>(shape.active)
                                 : ggml_row_size(type, shape.n_embd) * static_cast<uint64_t>(shape.n_ff);
      const double products =
          static_cast<double>(shape.n_embd) * static_cast<double>(shape.n_ff) * (ffn ? 3.0 * shape.active : 1.0);
      double one_token = 0;
      for (const int tokens : options.tokens) {
        OurWork ours(*plain, shape, tokens, {pool, kernels}, ffn);
        std::vector<double> times[4];
        std::unique_ptr<GgmlWork> peers[2];
        if (!options.no_ggml) {
          peers[0] = std::make_unique<GgmlWork>(*plain, shape, tokens, pool.threads(), ffn);
          if (repacked) peers[1] = std::make_unique<GgmlWork>(*repacked, shape, tokens, pool.threads(), ffn);
        }
        for (int round = -1; round < options.rounds; ++round) {  // the first one warms up
          const double time = ours.run();
          if (round >= 0) times[0].push_back(time);
          const double read_time = ours.read();
          if (round >= 0) times[3].push_back(read_time);
          for (int p = 0; p < 2; ++p) {
            if (peers[p] == nullptr) continue;
            const double peer_time = peers[p]->run();
            if (round >= 0) times[p + 1].push_back(peer_time);
          }
        }
        const double time = median(times[0]);
        if (tokens == options.tokens.front()) one_token = time;
        const double peak = ops::activation_format(type).kind == ops::ActivationFormat::Kind::kBf16 ||
                                    ops::activation_format(type).kind == ops::ActivationFormat::Kind::kF16 ||
                                    type == GGML_TYPE_F32
                                ? peaks.float_products_per_s
                                : peaks.byte_products_per_s;
        report(type_name, shape, ffn, tokens, time, one_token, static_cast<double>(bytes) / time,
               products * tokens / time, peak, median(times[3]) / time, times[1], times[2]);
      }
    }
  }

  void report(const std::string& type, const Shape& shape, bool ffn, int tokens, double time, double one_token,
              double bytes_per_s, double products_per_s, double peak, double memory_share,
              const std::vector<double>& plain, const std::vector<double>& repacked) const {
    const auto against = [&](const std::vector<double>& peer) {
      return peer.empty() ? std::string("-") : fmt::format("{:.2f}", median(peer) / time);
    };
    if (options.json) {
      fmt::print(
          "{{\"op\": \"{}\", \"type\": \"{}\", \"n_embd\": {}, \"n_ff\": {}, \"experts\": {}, \"tokens\": {}, "
          "\"isa\": \"{}\", \"threads\": {}, \"us\": {:.1f}, \"over_one\": {:.3f}, \"memory_share\": {:.3f}, "
          "\"compute_share\": {:.3f}, \"ggml_over_ours\": {}, \"ggml_repacked_over_ours\": {}}}\n",
          ffn ? "ffn" : "linear", type, shape.n_embd, shape.n_ff, ffn ? shape.active : 1, tokens, name(kernels.isa),
          pool.threads(), time * 1e6, time / one_token, memory_share, products_per_s / peak,
          plain.empty() ? "null" : against(plain), repacked.empty() ? "null" : against(repacked));
    } else {
      fmt::print(
          "{:6} {:5} {:>10} {:>4}  {:>10.1f} us {:>6.2f}x  {:>5.1f} GB/s {:>4.0f}%  {:>5.0f} G/s {:>4.0f}%  {:>7} "
          "{:>9}\n",
          ffn ? "ffn" : "linear", type,
          fmt::format("{}x{}{}", shape.n_embd, shape.n_ff, ffn ? fmt::format("*{}", shape.active) : ""), tokens,
          time * 1e6, time / one_token, bytes_per_s * 1e-9, 100 * memory_share, products_per_s * 1e-9,
          100 * products_per_s / peak, against(plain), against(repacked));
    }
    std::fflush(stdout);
  }
};

int run(const Options& options) {
  const std::optional<ops::Isa> isa = options.isa.empty() ? ops::best_isa() : ops::isa_named(options.isa);
  if (!isa || !ops::executes(*isa)) {
    fmt::print(stderr, "no instruction set '{}' here\n", options.isa);
    return 2;
  }
  WorkerPool pool(options.threads);
  const ops::simd::Kernels& kernels = ops::simd::kernels(*isa);
  const Result<Arena> memory = Arena::reserve(options.stream_bytes);
  if (!memory.ok()) {
    fmt::print(stderr, "{}\n", memory.status().message());
    return 4;
  }
  std::memset(memory.value().data(), 1, options.stream_bytes);
  const Bench bench{options, pool, kernels, measure_peaks(pool, kernels, memory.value().data(), options.stream_bytes)};
  if (!options.json) {
    fmt::print("{}, {} threads: memory {:.1f} GB/s, {:.0f} G byte products/s, {:.0f} G float products/s\n",
               name(kernels.isa), pool.threads(), bench.peaks.bytes_per_s * 1e-9,
               bench.peaks.byte_products_per_s * 1e-9, bench.peaks.float_products_per_s * 1e-9);
    fmt::print("op     type       shape    n        time    over 1   memory        products    ggml/ours  repacked\n");
  }
  for (const std::string& shape_text : options.shapes) {
    Shape shape;
    if (std::sscanf(shape_text.c_str(), "%ldx%ld", &shape.n_embd, &shape.n_ff) != 2 || shape.n_embd % 256 != 0 ||
        shape.n_ff % 32 != 0 || shape.n_embd <= 0 || shape.n_ff <= 0) {
      fmt::print(stderr, "'{}' is no shape like 4096x14336, of multiples of 256 and of 32\n", shape_text);
      return 2;
    }
    shape.active = shape.n_embd * shape.n_ff > (int64_t{1} << 24) ? 2 : 8;
    for (const std::string& type_name : options.types) {
      std::optional<ggml_type> type;
      for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
        const char* known = ggml_type_name(static_cast<ggml_type>(t));
        if (known != nullptr && type_name == known) type = static_cast<ggml_type>(t);
      }
      if (!type || !ops::supports_weights(*type)) {
        fmt::print(stderr, "no weights of type '{}'\n", type_name);
        return 2;
      }
      bench.run(type_name, *type, shape);
    }
  }
  return 0;
}

}  // namespace
}  // namespace drafthorse

int main(int argc, char** argv) {
  drafthorse::Options options;
  CLI::App app{"Linears and the experts' FFN against ggml's"};
  app.add_option("--types", options.types, "Weight types")->delimiter(',');
  app.add_option("--shapes", options.shapes, "n_embd x n_ff")->delimiter(',');
  app.add_option("--tokens", options.tokens, "Tokens per call; the first is the measure of the others")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--rounds", options.rounds, "Measured rounds")->check(CLI::PositiveNumber);
  app.add_option("--threads", options.threads, "Threads")->check(CLI::PositiveNumber);
  app.add_option("--isa", options.isa, "Instruction set; default: the best");
  app.add_option("--stream-bytes", options.stream_bytes, "Weights to rotate over");
  app.add_flag("--ffn", options.ffn_only, "Only the experts' FFN");
  app.add_flag("--linear", options.linear_only, "Only linears");
  app.add_flag("--no-ggml", options.no_ggml, "Without ggml");
  app.add_flag("--json", options.json, "JSON lines");
  CLI11_PARSE(app, argc, argv);
  return drafthorse::run(options);
}
