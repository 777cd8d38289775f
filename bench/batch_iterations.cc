// A batch, iteration by iteration: what each took, by part. One JSON line per iteration and a last one with the sums.
//
//   drafthorse-batch-iterations MODEL PROMPTS.jsonl [--draft DRAFT] [--ram BYTES] [--sequences 32] [--requests 64]
//                               [--tokens 64] [--depth N] [--regime auto] [--quiet]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/batch.h"

namespace drafthorse {
namespace {

struct BenchOptions {
  EngineOptions engine;
  std::string prompts;
  int64_t requests = 64;
  int64_t tokens = 64;
  int64_t copies = 1;
  bool quiet = false;
};

Result<std::vector<std::string>> read_prompts(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> prompts;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("text")) return file_error(path + ": a line is not {\"text\": ..}");
    prompts.push_back(json["text"].get<std::string>());
  }
  if (prompts.empty()) return file_error(path + ": there are no prompts");
  return prompts;
}

void print(const BatchIteration& one, int64_t number, double seconds_in_all) {
  fmt::print(
      "{{\"iteration\":{},\"depth\":{},\"generating\":{},\"window_tokens\":{},\"prompt_tokens\":{},\"drafted\":{},"
      "\"accepted\":{},\"generated\":{},\"cached\":{},\"draft_s\":{:.5f},\"pass_s\":{:.5f},\"attention_s\":{:.5f},"
      "\"experts_s\":{:.5f},\"stall_s\":{:.5f},\"head_s\":{:.5f},\"bytes\":{},\"busy_s\":{:.5f}}}\n",
      number, one.depth, one.generating, one.window_tokens, one.prompt_tokens, one.drafted_tokens, one.accepted_tokens,
      one.generated_tokens, one.cached_positions, one.draft_s, one.pass_s, one.attention_s, one.experts_s, one.stall_s,
      one.head_s, one.bytes_read, seconds_in_all);
}

Status run(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<std::string> prompts, read_prompts(options.prompts));
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::open(options.engine, {}));
  fmt::print("{{\"slots\":{},\"experts\":{},\"kv_bytes\":{},\"ram\":{}}}\n", engine->memory_plan().slots,
             engine->target().model->layout().total_experts(), engine->batch_bytes(), engine->ram_budget_bytes());
  Batch batch(*engine);
  for (int64_t i = 0; i < options.requests; ++i) {
    BatchRequest request;
    request.id = i;
    request.token_limit = options.tokens;
    for (int64_t copy = 0; copy < options.copies; ++copy) {
      const auto number = static_cast<size_t>(i + copy);
      const std::vector<int32_t> tokens = engine->tokenizer().tokenize(prompts[number % prompts.size()]);
      request.prompt.insert(request.prompt.end(), tokens.begin(), tokens.end());
    }
    RETURN_IF_ERROR(batch.submit(std::move(request)));
  }
  while (!batch.idle()) {
    const double before = batch.stats().busy_s;
    RETURN_IF_ERROR(batch.step());
    if (!options.quiet) print(batch.last(), batch.stats().iterations, batch.stats().busy_s - before);
    (void)batch.take_finished();
  }
  print(batch.stats().sum, batch.stats().iterations, batch.stats().busy_s);
  fmt::print(stderr, "{:.2f} tokens/s; {}\n",
             static_cast<double>(batch.stats().sum.generated_tokens) / batch.stats().busy_s, batch.explain());
  return {};
}

}  // namespace
}  // namespace drafthorse

int main(int argc, char** argv) {
  using namespace drafthorse;
  BenchOptions options;
  options.engine.batch = BatchOptions{.sequences = 32};
  uint64_t ram = 0;
  int depth = -1;
  CLI::App app("A batch, iteration by iteration");
  app.add_option("model", options.engine.target_path)->required();
  app.add_option("prompts", options.prompts)->required();
  app.add_option("--draft", options.engine.draft_path);
  app.add_option("--drafter", options.engine.drafter);
  app.add_option("--ram", ram)->transform(CLI::AsSizeValue(false));
  app.add_option("--sequences", options.engine.batch->sequences);
  app.add_option("--typical", options.engine.batch->typical_tokens, "tokens of a request that memory is planned by");
  app.add_option("--regime", options.engine.batch->regime);
  app.add_option("--kv", options.engine.kv_type);
  app.add_option("--requests", options.requests);
  app.add_option("--tokens", options.tokens);
  app.add_option("--prompt-copies", options.copies, "prompts strung together per request");
  app.add_option("--depth", depth);
  app.add_option("--slots", options.engine.expert_slots);
  app.add_flag("--quiet", options.quiet);
  CLI11_PARSE(app, argc, argv);
  if (ram > 0) options.engine.ram_bytes = ram;
  if (depth >= 0) options.engine.draft_depth = depth;
  options.engine.context = 1024;
  const Status status = run(options);
  if (!status.ok()) fmt::print(stderr, "{}\n", status.message());
  return static_cast<int>(status.kind());
}
