// drafthorse-widen IN.gguf OUT.gguf: the command line of widen.h.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "base/clock.h"
#include "base/units.h"
#include "widen/widen.h"

namespace {

using namespace drafthorse;

constexpr const char* kDescription =
    "Makes a GGUF model wider without changing what it computes: vectors are repeated end to end, weights repeated "
    "and\n"
    "divided by the number of copies. Routing and text stay those of the small model while tensors get the sizes of a\n"
    "large one. Without --embd and --ff it only changes the type of the weights.\n"
    "Architectures: {}; Mixtral's is llama.";

constexpr const char* kExamples =
    "Examples:\n"
    "  drafthorse-widen models/mixtral/target.gguf big.gguf --embd 2048 --ff 7168 --type Q4_K\n"
    "  drafthorse-widen models/mixtral/target.gguf draft.gguf --type Q8_0\n"
    "Exit codes: 0 done, 2 wrong usage, 3 a file that cannot be read, widened or written.";

// A bar that is redrawn on a terminal; nothing elsewhere.
class Bar {
 public:
  void show(uint64_t done, uint64_t total) {
    if (!terminal_ || total == 0) return;
    const auto percent = static_cast<int>(done * 100 / total);
    if (percent == percent_) return;
    percent_ = percent;
    const std::string filled(static_cast<size_t>(percent * 40 / 100), '#');
    fmt::print(stderr, "\r[{:<40}] {:3}%  {} of {} ", filled, percent, format_size(done), format_size(total));
    std::fflush(stderr);
  }
  void clear() const {
    if (terminal_ && percent_ >= 0) fmt::print(stderr, "\r\033[K");
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  int percent_ = -1;
};

struct Arguments {
  std::string in_path;
  std::string out_path;
  std::string type = "F16";
  std::string rest_type;
  WidenOptions options;
  int32_t n_threads = 0;
};

void declare(CLI::App& app, Arguments& arguments) {
  app.footer(kExamples);
  app.add_option("IN.gguf", arguments.in_path, "The small model")->required();
  app.add_option("OUT.gguf", arguments.out_path, "The file to write")->required();
  app.add_option("--embd", arguments.options.n_embd,
                 "Channels wanted, a multiple of the model's; heads are repeated with them (default: unchanged)");
  app.add_option("--ff", arguments.options.n_ff,
                 "Rows of the FFN wanted, for each expert, a multiple of the model's; shared experts and leading dense "
                 "layers grow by the same factor (default: unchanged)");
  app.add_option("--type", arguments.type,
                 "Type of the weights: " + weight_type_names() +
                     ". Norms and router are F32; rows of one head or of the latent state that a block does not divide "
                     "are Q8_0, or F16")
      ->capture_default_str();
  app.add_option("--rest-type", arguments.rest_type,
                 "Type of what is no FFN: attention, embeddings and head (default: as --type)");
  app.add_option(
         "--noise", arguments.options.noise,
         "Random numbers, relative to a row's RMS, that sum to zero over the copies of each weight: the function "
         "stays, but copies round on their own, as weights of a large model do (0.5 for quantised types)")
      ->capture_default_str();
  app.add_option("--seed", arguments.options.seed, "Of the noise")->capture_default_str();
  app.add_option("--extra-layers", arguments.options.n_extra_layers,
                 "Layers to add whose output projections are zero. They change size, not text, and see an unchanged "
                 "residual stream: for tests of size only, never to compare prediction or caching");
  app.add_option("--threads", arguments.n_threads, "Threads that convert weights (default: one for each processor)");
}

int run(Arguments& arguments) {
  const SteadyClock clock;
  const int64_t start_ns = clock.now_ns();
  const auto fail = [](const Status& status) {
    fmt::print(stderr, "drafthorse-widen: {}\n", status.message());
    return static_cast<int>(status.kind());
  };
  for (const std::string& name : {arguments.type, arguments.rest_type}) {
    if (!name.empty() && !parse_weight_type(name)) {
      return fail(usage_error(fmt::format("{} is no type of weights; choose one of {}", name, weight_type_names())));
    }
  }
  arguments.options.type = parse_weight_type(arguments.type).value_or(GGML_TYPE_F16);
  arguments.options.rest_type = parse_weight_type(arguments.rest_type);
  Bar bar;
  const auto report = widen(arguments.in_path, arguments.out_path, arguments.options, arguments.n_threads,
                            [&](uint64_t done, uint64_t total) { bar.show(done, total); });
  bar.clear();
  if (!report.ok()) return fail(report.status());
  const WidenReport& r = report.value();
  fmt::print("{}: {} layers, {} channels, FFN {}, {}, {}{} in {:.1f} s\n", arguments.out_path, r.n_layer, r.n_embd,
             r.n_ff, ggml_type_name(arguments.options.type), format_size(r.file_bytes),
             r.expert_bytes == 0 ? std::string() : fmt::format(", {} an expert", format_size(r.expert_bytes)),
             seconds(clock.now_ns() - start_ns));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(fmt::format(kDescription, widened_architecture_names()), "drafthorse-widen");
  Arguments arguments;
  declare(app, arguments);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : static_cast<int>(StatusKind::kUsage);
  }
  return run(arguments);
}
