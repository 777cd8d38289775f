// What choosing a token costs, by vocabulary: sampler_bench [--benchmark_...] VOCABULARY.gguf (default: the demo's).
// Every choice is at a new position of a text that goes on, as in decoding; two choices a position, as with a draft.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstdio>

#include "model/sampler.h"

namespace drafthorse {
namespace {

std::string g_path = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";  // set by main() before anything runs

const Tokenizer& tokenizer() {
  static const std::unique_ptr<Tokenizer> loaded = [] {
    Result<GgufIndex> index = GgufIndex::open(g_path);
    CHECK(index.ok() && check_vocabulary(*index).ok());
    return std::move(Tokenizer::load(*index)).value();
  }();
  return *loaded;
}

// A few likely tokens over a Gumbel-like bulk, different at every position.
std::vector<float> some_logits(uint64_t position) {
  std::vector<float> out(static_cast<size_t>(tokenizer().n_tokens()));
  const Noise noise(1, NoiseStream::kDraft, position);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(1.5 * noise.gumbel(static_cast<int32_t>(i)));
  return out;
}

void choose(benchmark::State& state, const SamplingOptions& options) {
  const std::unique_ptr<Sampler> sampler = std::move(Sampler::create(tokenizer(), options)).value();
  constexpr size_t kRows = 32;
  constexpr size_t kLongest = 256;
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < kRows; ++i) rows.push_back(some_logits(i));
  std::vector<int32_t> text = {1};
  sampler->begin(1);
  for (auto _ : state) {
    const std::vector<float>& logits = rows[text.size() % kRows];
    benchmark::DoNotOptimize(sampler->propose(logits, text));
    const int32_t token = sampler->decide(logits, text, kNoToken);
    if (token == kNoToken || sampler->is_end(token) || text.size() == kLongest) {
      text.resize(1);
    } else {
      text.push_back(token);
    }
  }
  state.SetItemsProcessed(state.iterations() * 2);
  state.SetLabel(fmt::format("{} tokens", tokenizer().n_tokens()));
}

void greedy(benchmark::State& state) { choose(state, {}); }
void temperature(benchmark::State& state) { choose(state, {.temperature = 1}); }
void usual_chain(benchmark::State& state) {
  choose(state, {.temperature = 0.8, .top_k = 40, .top_p = 0.95, .min_p = 0.05, .repeat_penalty = 1.1});
}
void top_p_alone(benchmark::State& state) { choose(state, {.temperature = 0.8, .top_p = 0.95}); }
// What the model wants is allowed, as it is most of the time when a model was asked for JSON. The json ones below have
// random logits: a token that is allowed has to be looked for.
void wide_grammar(benchmark::State& state) { choose(state, {.temperature = 1, .grammar = "root ::= [^\\x00]+"}); }
void json_greedy(benchmark::State& state) { choose(state, {.grammar = json_grammar()}); }
void json_temperature(benchmark::State& state) { choose(state, {.temperature = 1, .grammar = json_grammar()}); }
void json_usual_chain(benchmark::State& state) {
  choose(state, {.temperature = 0.8, .top_k = 40, .top_p = 0.95, .min_p = 0.05, .grammar = json_grammar()});
}
void json_top_p_alone(benchmark::State& state) {
  choose(state, {.temperature = 0.8, .top_p = 0.95, .grammar = json_grammar()});
}
void rejection(benchmark::State& state) { choose(state, {.temperature = 1, .rejection = true}); }

BENCHMARK(greedy)->Unit(benchmark::kMicrosecond);
BENCHMARK(temperature)->Unit(benchmark::kMicrosecond);
BENCHMARK(usual_chain)->Unit(benchmark::kMicrosecond);
BENCHMARK(top_p_alone)->Unit(benchmark::kMicrosecond);
BENCHMARK(wide_grammar)->Unit(benchmark::kMicrosecond);
BENCHMARK(json_greedy)->Unit(benchmark::kMicrosecond);
BENCHMARK(json_temperature)->Unit(benchmark::kMicrosecond);
BENCHMARK(json_usual_chain)->Unit(benchmark::kMicrosecond);
BENCHMARK(json_top_p_alone)->Unit(benchmark::kMicrosecond);
BENCHMARK(rejection)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace drafthorse

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc > 1) drafthorse::g_path = argv[1];
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
