// Many requests at once with a device: its dense layers and experts, the host's attention.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "end_to_end/agreement.h"
#include "end_to_end/generation.h"
#include "engine/batch.h"
#include "support/device_server_process.h"
#include "support/family_cases.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

constexpr size_t kRequests = 24;
constexpr int64_t kTokens = 32;
constexpr int kAllSlots = 1 << 20;

const std::string kTarget = DRAFTHORSE_FLOAT_TARGET;
const std::string kDenseDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";
const std::string kQuantizedDraft = DRAFTHORSE_QUANTIZED_DRAFT;

EngineOptions on_cpu() {
  EngineOptions options;
  options.target_path = kTarget;
  options.context = 256;
  options.ram_bytes = uint64_t{1} << 30;
  options.threads = 1;
  options.drafter = "none";
  options.device.name = "cpu";
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

// The logits that a batch's pass gives for `sequences` texts at once: prompts of several lengths, then one window more
// for each, of several widths.
Logits batch_logits(const EngineOptions& options, int32_t sequences) {
  Logits logits;
  const std::unique_ptr<Engine> engine = open(options);
  if (engine == nullptr) return logits;
  ForwardPass& pass = *engine->target().pass;
  const int32_t n_vocab = engine->target().model->config().n_vocab;
  std::mt19937 random(3);
  std::vector<std::vector<int32_t>> texts(static_cast<size_t>(sequences));
  for (const int32_t wanted : {1, 3}) {
    std::vector<BatchRun> runs;
    for (int32_t s = 0; s < sequences; ++s) {
      std::vector<int32_t>& tokens = texts[static_cast<size_t>(s)];
      tokens.resize(static_cast<size_t>(wanted == 1 ? 5 + 7 * s : 3 + s));
      for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint32_t>(n_vocab));
      runs.push_back({{tokens, s}, wanted});
    }
    const Status status = pass.run_batch(runs);
    EXPECT_TRUE(status.ok()) << status.message();
    pass.head(0, wanted * sequences);
    for (int32_t i = 0; i < wanted * sequences; ++i) {
      logits.emplace_back(pass.logits(i).begin(), pass.logits(i).end());
    }
  }
  return logits;
}

class BatchOnDevice : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (server_ == nullptr) server_ = new DeviceServerProcess;
  }
  static EngineOptions options(int32_t sequences) {
    EngineOptions options = on_cpu();
    options.device.servers = {server_->endpoint()};
    options.device.name = server_->device();
    options.batch = BatchOptions{.sequences = sequences};
    return options;
  }
  static EngineOptions drafting(int32_t sequences, const std::string& drafter, int depth) {
    EngineOptions result = options(sequences);
    result.drafter = drafter;
    if (drafter == "model" || drafter == "auto") result.draft_path = kDenseDraft;
    if (drafter == "shared-kv") result.draft_path = kQuantizedDraft;
    if (depth >= 0) result.draft_depth = depth;
    return result;
  }

  static std::vector<BatchRequest> requests(const Tokenizer& tokenizer) {
    std::vector<BatchRequest> all;
    const std::vector<std::string> prompts = read_prompts(kRequests);
    for (size_t i = 0; i < prompts.size(); ++i) {
      BatchRequest request;
      request.id = static_cast<int64_t>(i);
      request.prompt = tokenizer.tokenize(prompts[i]);
      request.token_limit = kTokens - static_cast<int64_t>(i % 5);
      all.push_back(std::move(request));
    }
    return all;
  }

  // What the CPU generates for each request alone, and how sure it was of each token: its logit less the next best.
  struct Reference {
    std::vector<int32_t> tokens;
    std::vector<float> margins;
  };
  static const std::vector<Reference>& reference() {
    static const std::vector<Reference> all = [] {
      std::vector<Reference> result;
      const std::unique_ptr<Engine> engine = open(on_cpu());
      for (const BatchRequest& request : requests(engine->tokenizer())) {
        Reference& one = result.emplace_back();
        one.tokens = generate(*engine, request.prompt, request.token_limit).tokens;
        std::vector<int32_t> text = request.prompt;
        text.insert(text.end(), one.tokens.begin(), one.tokens.end());
        const Logits logits = our_logits(*engine, text);
        for (size_t t = request.prompt.size() - 1; t + 1 < logits.size(); ++t) {
          std::vector<float> row = logits[t];
          std::nth_element(row.begin(), row.begin() + 1, row.end(), std::greater<>());
          one.margins.push_back(row[0] - row[1]);
        }
      }
      return result;
    }();
    return all;
  }

  // Runs all requests, submitted in an order of their own. Texts may part from the CPU's where its choice was a near
  // tie, and nowhere else. How many do.
  static int divergences(const EngineOptions& options, const std::function<void(Engine&)>& prepare = {}) {
    const std::unique_ptr<Engine> engine = open(options);
    if (engine == nullptr) return -1;
    if (prepare) prepare(*engine);
    std::vector<BatchRequest> todo = requests(engine->tokenizer());
    std::mt19937 random(5);
    std::shuffle(todo.begin(), todo.end(), random);
    Batch batch(*engine);
    size_t ended = 0;
    int count = 0;
    for (int round = 0; ended < kRequests && round < 2000; ++round) {
      for (int i = 0; i < 5 && !todo.empty(); ++i) {
        EXPECT_TRUE(batch.submit(std::move(todo.back())).ok());
        todo.pop_back();
      }
      const Status status = batch.step();
      EXPECT_TRUE(status.ok()) << status.message();
      if (!status.ok()) return -1;
      for (const BatchResult& result : batch.take_finished()) {
        ++ended;
        EXPECT_TRUE(result.status.ok()) << result.status.message();
        if (parts(result, *engine)) ++count;
      }
      engine->target().cache->check_invariants();
      engine->target().device_experts->slots().check_invariants();
    }
    EXPECT_EQ(ended, kRequests);
    return count;
  }
  static bool parts(const BatchResult& result, Engine& engine) {
    // Of the logits' own size, about 10; the two sides differ by .01 of it.
    constexpr float kNearTieMargin = 0.5F;
    const Reference& expected = reference()[static_cast<size_t>(result.id)];
    std::string text;
    for (size_t t = 0; t < expected.tokens.size(); ++t) {
      text += engine.tokenizer().piece(expected.tokens[t]);
      if (result.text.starts_with(text)) continue;
      EXPECT_LT(expected.margins[t], kNearTieMargin) << "request " << result.id << ", token " << t;
      return true;
    }
    EXPECT_EQ(result.text, text) << "request " << result.id;
    return false;
  }

  static DeviceServerProcess* server_;  // until the process ends: ggml keeps the connection
};

DeviceServerProcess* BatchOnDevice::server_ = nullptr;

TEST_F(BatchOnDevice, TextsAreThoseOfOneAloneButForNearTies) {
  int count = 0;
  int texts = 0;
  for (const int32_t sequences : {1, 7, 24}) {
    for (const int slots : {1, 40, kAllSlots}) {
      SCOPED_TRACE(fmt::format("{} at once, {} slots", sequences, slots));
      EngineOptions few = options(sequences);
      few.device_slots = slots;
      count += divergences(few);
      texts += static_cast<int>(kRequests);
    }
  }
  EXPECT_LT(count, texts / 10);
  std::cout << count << " of " << texts << " texts diverge\n";
}

TEST_F(BatchOnDevice, DraftsChangeNoText) {
  int count = 0;
  int texts = 0;
  for (const char* drafter : {"model", "shared-kv", "ngram", "auto"}) {
    for (const int depth : {2, 6, -1}) {
      SCOPED_TRACE(fmt::format("{}, depth {}", drafter, depth));
      EngineOptions drafted = drafting(9, drafter, depth);
      drafted.device_slots = 50;
      count += divergences(drafted);
      texts += static_cast<int>(kRequests);
    }
  }
  EXPECT_LT(count, texts / 10);
  std::cout << count << " of " << texts << " texts diverge\n";
}

TEST_F(BatchOnDevice, EveryRegimeReadsAsItSays) {
  for (const std::string& regime : batch_regime_names()) {
    SCOPED_TRACE(regime);
    EngineOptions few = options(12);
    few.batch->regime = regime;
    few.device_slots = 60;
    const std::unique_ptr<Engine> engine = open(few);
    ASSERT_NE(engine, nullptr);
    Batch batch(*engine);
    for (BatchRequest& request : requests(engine->tokenizer())) ASSERT_TRUE(batch.submit(std::move(request)).ok());
    while (!batch.idle()) ASSERT_TRUE(batch.step().ok());
    const DeviceLayerStats total = total_of(engine->target().device_experts->stats());
    EXPECT_GT(total.hits, 0);
    EXPECT_GT(batch.stats().sum.bytes_read, 0U);
    if (find_batch_regime(regime)->read_ahead == ReadAhead::kNever) {
      EXPECT_EQ(total.prefetched, 0);
    } else {
      EXPECT_GT(total.prefetched, 20);
      EXPECT_GT(total.prefetched_used, total.prefetched / 3);
    }
  }
}

// Where the CPU is said to be fast, it computes what is missing, in windows small enough.
TEST_F(BatchOnDevice, MissesAreComputedOnEitherSide) {
  for (const double host_bytes_per_s : {1.0, 1e15}) {
    EngineOptions few = options(6);
    few.batch->regime = "cache";
    few.device_slots = 9;
    EXPECT_GE(divergences(few,
                          [&](Engine& engine) {
                            engine.target().device_experts->set_costs({1e9, host_bytes_per_s, host_bytes_per_s});
                          }),
              0);
  }
}

TEST_F(BatchOnDevice, KeysAndValuesMayBeEightBits) {
  EngineOptions packed = options(8);
  packed.kv_type = "q8_0";
  const Logits device = batch_logits(packed, 4);
  EngineOptions cpu = on_cpu();
  cpu.batch = packed.batch;
  cpu.kv_type = "q8_0";
  EXPECT_LT(relative_rms(device, batch_logits(cpu, 4)), 2e-2);
}

// Reads that stay broken fail an iteration, and the next ones work.
TEST_F(BatchOnDevice, FailingReadsLeaveItWorking) {
  EngineOptions broken = options(6);
  broken.device_slots = 7;
  broken.expert_slots = 5;
  int failed = 0;
  for (const int64_t from : {40, 150, 400}) {
    broken.queue_factory = [from](const FileSet& files) -> Result<std::unique_ptr<ReadQueue>> {
      ASSIGN_OR_RETURN(std::unique_ptr<ReadQueue> queue, make_uring_queue(files));
      return make_fault_injecting_queue(std::move(queue), {.fail_at = from, .fail_count = 30});
    };
    Result<std::unique_ptr<Engine>> engine = Engine::open(broken, {});
    if (!engine.ok()) {
      ++failed;
      continue;
    }
    Batch batch(**engine);
    for (BatchRequest& request : requests((*engine)->tokenizer())) ASSERT_TRUE(batch.submit(std::move(request)).ok());
    size_t ended = 0;
    for (int i = 0; i < 1000 && !batch.idle(); ++i) {
      failed += batch.step().ok() ? 0 : 1;
      for (const BatchResult& result : batch.take_finished()) {
        ++ended;
        parts(result, **engine);
      }
      (*engine)->target().cache->check_invariants();
    }
    EXPECT_EQ(ended, kRequests);
  }
  EXPECT_GT(failed, 0);
}

TEST_F(BatchOnDevice, LedgersHoldWhatIsTaken) {
  EngineOptions some = drafting(8, "model", 2);
  some.device.vram_bytes = 60 * kMiB;
  const std::unique_ptr<Engine> engine = open(some);
  ASSERT_NE(engine, nullptr);
  EXPECT_LE(engine->device_ledger().total(), 60 * kMiB);
  EXPECT_EQ(engine->device_ledger().bytes("KV cache"), 0U);
  EXPECT_GT(engine->ledger().bytes("keys and values of texts"), 0U);
  EXPECT_GT(engine->ledger().bytes("attention"), 0U);
}

TEST_F(BatchOnDevice, FixedPlacementIsRefused) {
  EngineOptions fixed = options(4);
  fixed.device.placement = "fixed";
  const Status refused = Engine::open(fixed, {}).status();
  EXPECT_EQ(refused.kind(), StatusKind::kUsage);
  EXPECT_NE(refused.message().find("one text at a time"), std::string::npos) << refused.message();
}

// A layer cut in two, in every family: with one part, and with two.
class FamilyBatchOnDevice : public BatchOnDevice, public testing::WithParamInterface<FamilyCase> {};

TEST_P(FamilyBatchOnDevice, ComputesWhatTheCpuComputes) {
  const TempDir folder;
  TinyModelOptions tiny = GetParam().options;
  tiny.type = GGML_TYPE_F32;
  const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), tiny);
  ASSERT_TRUE(path.ok()) << path.status().message();
  for (const int32_t sequences : {1, 5}) {
    EngineOptions device = options(sequences);
    device.target_path = *path;
    device.device_slots = 5;
    EngineOptions cpu = on_cpu();
    cpu.target_path = *path;
    cpu.batch = device.batch;
    // A token whose router had a near tie is another token's worth apart: the median, not the mean.
    const Logits ours = batch_logits(device, sequences);
    const Logits theirs = batch_logits(cpu, sequences);
    ASSERT_EQ(ours.size(), theirs.size());
    std::vector<double> errors;
    for (size_t i = 0; i < ours.size(); ++i) errors.push_back(relative_rms({ours[i]}, {theirs[i]}));
    std::sort(errors.begin(), errors.end());
    EXPECT_LT(errors[errors.size() / 2], 2e-3) << sequences;
    EXPECT_LT(errors[errors.size() * 9 / 10], 5e-2) << sequences;
  }
}

// The draft's attention, split: sequences that fit into a slot on the device, long ones on the host, and what is
// truncated, released and begun anew. Logits are those of the CPU.
TEST_P(FamilyBatchOnDevice, SplitsTheDraftsAttention) {
  const TempDir folder;
  TinyModelOptions tiny = GetParam().options;
  tiny.type = GGML_TYPE_F32;
  const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), tiny);
  ASSERT_TRUE(path.ok()) << path.status().message();
  constexpr int32_t kSequences = 5;
  const auto logits_of = [&](EngineOptions options) {
    Logits logits;
    options.target_path = options.draft_path = *path;
    options.drafter = "model";
    options.draft_depth = 2;
    options.context = 512;
    options.batch->typical_tokens = 64;  // slots of 256 positions
    const std::unique_ptr<Engine> engine = open(options);
    if (engine == nullptr) return logits;
    ForwardPass& pass = *engine->draft_pass();
    Model& model = pass.model();
    std::mt19937 random(9);
    const auto some = [&](size_t count) {
      std::vector<int32_t> tokens(count);
      for (int32_t& token : tokens)
        token = static_cast<int32_t>(random() % static_cast<uint32_t>(model.config().n_vocab));
      return tokens;
    };
    const auto run = [&](const std::vector<std::pair<int32_t, size_t>>& what) {  // sequence, tokens
      std::vector<std::vector<int32_t>> tokens;
      std::vector<BatchRun> runs;
      for (const auto& [sequence, count] : what) tokens.push_back(some(count));
      for (size_t i = 0; i < what.size(); ++i) runs.push_back({{tokens[i], what[i].first}, 1});
      const Status status = pass.run_batch(runs);
      EXPECT_TRUE(status.ok()) << status.message();
      pass.head(0, static_cast<int32_t>(what.size()));
      for (size_t i = 0; i < what.size(); ++i) {
        const std::span<const float> row = pass.logits(static_cast<int32_t>(i));
        logits.emplace_back(row.begin(), row.end());
      }
    };
    KvCache& kv = model.kv();
    run({{0, 9}, {1, 30}, {2, 1}, {3, 120}});
    run({{3, 120}});
    run({{3, 17}});  // past the slot's end
    for (int i = 0; i < 3; ++i) run({{0, 1}, {1, 1}, {2, 1}, {3, 1}});
    kv.truncate(10, 0);
    kv.truncate(25, 1);
    run({{1, 1}, {3, 1}, {0, 1}});
    run({{1, 3}, {0, 1}, {2, 1}});
    kv.release(2);
    run({{2, 6}, {4, 250}});
    for (int i = 0; i < 8; ++i) run({{4, 1}, {2, 1}, {0, 1}});  // the first one outgrows its slot
    kv.release(4);
    kv.release(0);
    run({{0, 2}});
    for (int i = 0; i < 10; ++i) run({{1, 1}, {0, 1}});  // another text under the old number
    for (const int32_t sequence : {0, 1, 2, 3}) kv.release(sequence);
    for (int i = 0; i < 12; ++i) run({{0, 1}, {1, 1}, {2, 1}, {3, 1}});  // all begin at once
    const int64_t attended = model.mirror() != nullptr ? model.mirror()->attended() : 0;
    EXPECT_EQ(attended, options.device.name == "cpu" ? 0 : 104);
    return logits;
  };
  EngineOptions cpu = on_cpu();
  cpu.batch = BatchOptions{.sequences = kSequences};
  const Logits ours = logits_of(options(kSequences));
  const Logits theirs = logits_of(cpu);
  ASSERT_EQ(ours.size(), theirs.size());
  int far = 0;
  for (size_t i = 0; i < ours.size(); ++i) far += relative_rms({ours[i]}, {theirs[i]}) > 2e-3 ? 1 : 0;
  EXPECT_LE(far, static_cast<int>(ours.size()) / 10);
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyBatchOnDevice, testing::ValuesIn(family_cases()), family_case_name);

}  // namespace
}  // namespace drafthorse
