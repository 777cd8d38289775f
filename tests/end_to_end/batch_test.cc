// What a batch generates for a request is what a session generates for it alone, whatever shares an iteration with it.
#include "engine/batch.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "end_to_end/generation.h"

namespace drafthorse {
namespace {

const std::string kTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
const std::string kDenseDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";
const std::string kQuantizedDraft = DRAFTHORSE_QUANTIZED_DRAFT;
constexpr int32_t kContext = 256;

struct Expected {
  std::string text;
  StopReason stop = StopReason::kNone;
  int64_t tokens = 0;
};

EngineOptions base_options() {
  EngineOptions options;
  options.target_path = kTarget;
  options.context = kContext;
  options.ram_bytes = uint64_t{4} << 30;
  options.threads = 1;
  return options;
}

EngineOptions batch_options(int32_t sequences) {
  EngineOptions options = base_options();
  options.batch = BatchOptions{.sequences = sequences};
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

// Requests of all kinds: lengths, limits, ways to sample, stop texts, a grammar.
std::vector<BatchRequest> make_requests(const Tokenizer& tokenizer, size_t count) {
  std::vector<BatchRequest> requests;
  const std::vector<std::string> prompts = read_prompts(20);
  std::mt19937 random(7);
  for (size_t i = 0; i < count; ++i) {
    BatchRequest request;
    request.id = static_cast<int64_t>(100 + i);
    request.prompt = tokenizer.tokenize(prompts[i % prompts.size()]);
    const size_t length = 1 + random() % request.prompt.size();
    if (i % 3 == 1) request.prompt.resize(length);
    request.token_limit = i % 7 == 6 ? -1 : static_cast<int64_t>(1 + random() % 48);
    if (i % 4 == 2) {
      request.sampling.temperature = i % 8 == 2 ? 0.7 : 1.1;
      request.sampling.top_k = i % 8 == 2 ? 40 : 0;
      request.sampling.seed = i;
    }
    if (i % 5 == 3) request.stop_texts = {"\n\n", "return"};
    if (i % 11 == 10) request.sampling.grammar = "root ::= [a-z ]+ [.]";
    if (i % 13 == 12) request.sampling.repeat_penalty = 1.2;
    requests.push_back(std::move(request));
  }
  return requests;
}

std::vector<Expected> expected_of(Engine& engine, const std::vector<BatchRequest>& requests) {
  std::vector<Expected> all;
  for (const BatchRequest& request : requests) {
    Result<std::unique_ptr<Sampler>> sampler = Sampler::create(engine.tokenizer(), request.sampling);
    EXPECT_TRUE(sampler.ok());
    Session session(engine, std::move(sampler).value());
    session.set_token_limit(request.token_limit);
    session.set_stop_texts(request.stop_texts);
    EXPECT_TRUE(session.prefill(request.prompt).ok());
    Expected expected;
    while (session.stop_reason() == StopReason::kNone) {
      const Result<std::vector<int32_t>> added = session.decode_step();
      EXPECT_TRUE(added.ok());
      if (!added.ok()) break;
      expected.tokens += static_cast<int64_t>(added->size());
      expected.text += session.take_text();
    }
    expected.stop = session.stop_reason();
    all.push_back(std::move(expected));
  }
  return all;
}

class BatchTexts : public testing::Test {
 protected:
  static constexpr size_t kRequests = 30;
  static void SetUpTestSuite() {
    EngineOptions options = base_options();
    options.drafter = "none";
    const std::unique_ptr<Engine> engine = open(options);
    requests_ = new std::vector<BatchRequest>(make_requests(engine->tokenizer(), kRequests));
    expected_ = new std::vector<Expected>(expected_of(*engine, *requests_));
  }
  static void TearDownTestSuite() {
    delete requests_;
    delete expected_;
  }

  // Submits them in an order of its own, some only later, and compares.
  static void expect_same(const EngineOptions& options, const std::string& what, uint32_t seed = 1) {
    SCOPED_TRACE(what);
    const std::unique_ptr<Engine> engine = open(options);
    ASSERT_NE(engine, nullptr);
    Batch batch(*engine);
    std::vector<size_t> order(kRequests);
    for (size_t i = 0; i < kRequests; ++i) order[i] = i;
    std::mt19937 random(seed);
    std::shuffle(order.begin(), order.end(), random);
    size_t submitted = 0;
    size_t ended = 0;
    for (int round = 0; ended < kRequests && round < 5000; ++round) {
      while (submitted < kRequests && random() % 4 != 0) {
        ASSERT_TRUE(batch.submit((*requests_)[order[submitted++]]).ok());
      }
      const Status status = batch.step();
      ASSERT_TRUE(status.ok()) << status.message();
      for (const BatchResult& result : batch.take_finished()) {
        ++ended;
        const auto i = static_cast<size_t>(result.id - 100);
        ASSERT_TRUE(result.status.ok()) << result.status.message();
        EXPECT_EQ(result.text, (*expected_)[i].text) << "request " << i;
        EXPECT_EQ(result.stop, (*expected_)[i].stop) << "request " << i;
        EXPECT_EQ(result.generated_tokens, (*expected_)[i].tokens) << "request " << i;
        EXPECT_EQ(result.prompt_tokens, static_cast<int64_t>((*requests_)[i].prompt.size()));
      }
      if (ExpertCache* cache = engine->target().cache.get()) cache->check_invariants();
    }
    EXPECT_EQ(ended, kRequests);
    EXPECT_TRUE(batch.idle());
    EXPECT_LE(batch.stats().most_sequences, options.batch->sequences);
  }

  static std::vector<BatchRequest>* requests_;
  static std::vector<Expected>* expected_;
};

std::vector<BatchRequest>* BatchTexts::requests_ = nullptr;
std::vector<Expected>* BatchTexts::expected_ = nullptr;

TEST_F(BatchTexts, TheReferenceEndsInEveryWay) {
  const auto ends = [&](StopReason reason) {
    return std::count_if(expected_->begin(), expected_->end(),
                         [reason](const Expected& one) { return one.stop == reason; });
  };
  EXPECT_GT(ends(StopReason::kTokenLimit), 5);
  EXPECT_GT(ends(StopReason::kStopText), 0);
  EXPECT_GT(ends(StopReason::kContextFull) + ends(StopReason::kEndOfText), 0);
}

TEST_F(BatchTexts, AnyNumberAtOnce) {
  for (const int32_t sequences : {1, 2, 5, 30}) {
    EngineOptions options = batch_options(sequences);
    options.drafter = "none";
    expect_same(options, fmt::format("{} sequences", sequences), static_cast<uint32_t>(sequences));
  }
}

TEST_F(BatchTexts, AnyDrafterAndDepth) {
  for (const std::string& draft : {std::string(), kDenseDraft, kQuantizedDraft}) {
    for (const int depth : {1, 3, 8, -1}) {
      EngineOptions options = batch_options(depth == 3 ? 4 : 16);
      options.draft_path = draft;
      if (draft.empty()) options.drafter = "ngram";
      if (depth >= 0) options.draft_depth = depth;
      expect_same(options, fmt::format("draft '{}', depth {}", draft, depth), static_cast<uint32_t>(depth + 2));
      if (HasFatalFailure()) return;
    }
  }
  EngineOptions options = batch_options(9);
  options.draft_path = kQuantizedDraft;
  options.drafter = "model";
  options.draft_depth = 4;
  expect_same(options, "self-draft with a cache of its own");
}

// The first depth is that of the costs it is told, not of assumed ones.
TEST_F(BatchTexts, BeginsWithTheCostsItIsTold) {
  const auto line = [](int layers, double seconds) {
    ModelCost cost;
    cost.layers.assign(static_cast<size_t>(layers), {CostCurve::line(seconds, 0), {}, 0});
    return cost;
  };
  for (const double draft_s : {1e-6, 10.0}) {
    SCOPED_TRACE(draft_s);
    EngineOptions options = batch_options(4);
    options.draft_path = kQuantizedDraft;
    options.batch->costs = BatchCosts{line(4, 1e-3), line(4, draft_s), 1e9};
    const std::unique_ptr<Engine> engine = open(options);
    ASSERT_NE(engine, nullptr);
    Batch batch(*engine);
    BatchRequest request = requests_->front();
    request.token_limit = 40;
    ASSERT_TRUE(batch.submit(std::move(request)).ok());
    for (int i = 0; i < 3 && batch.last().generating == 0; ++i) ASSERT_TRUE(batch.step().ok());
    ASSERT_EQ(batch.last().generating, 1);
    EXPECT_EQ(batch.last().depth > 0, draft_s < 1);
  }
}

TEST_F(BatchTexts, AnyMemoryAndRegime) {
  for (const std::string& regime : batch_regime_names()) {
    for (const int slots : {2, 17, 40, 64}) {
      EngineOptions options = batch_options(8);
      options.batch->regime = regime;
      options.expert_slots = slots;
      options.threads = 1 + slots % 3;
      options.draft_path = kQuantizedDraft;
      options.draft_depth = slots % 5;
      expect_same(options, fmt::format("{}, {} slots", regime, slots), static_cast<uint32_t>(slots));
      if (HasFatalFailure()) return;
    }
  }
}

// Room for thirty short texts, or some fifteen of any length (what the process itself takes differs a little from one
// engine to the next). Where all experts fit, what is left is the texts'.
TEST_F(BatchTexts, LittleMemoryAdmitsFewer) {
  EngineOptions options = batch_options(30);
  options.drafter = "none";
  options.batch->typical_tokens = kContext / 15;
  {
    const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
    ASSERT_TRUE(engine.ok());
    const uint64_t fifteen = 15 * (*engine)->sequence_bytes(kContext);
    EXPECT_GT((*engine)->batch_bytes(), fifteen);
    options.ram_bytes = (*engine)->ledger().total() - (*engine)->batch_bytes() + fifteen;
  }
  {
    const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
    ASSERT_TRUE(engine.ok());
    ASSERT_LT((*engine)->batch_bytes(), 25 * (*engine)->sequence_bytes(kContext));
    ASSERT_GT((*engine)->batch_bytes(), 8 * (*engine)->sequence_bytes(kContext));
  }
  expect_same(options, "texts longer than typical");
}

TEST(Batch, RunsAsItsRegimeSays) {
  for (const std::string& regime : batch_regime_names()) {
    EngineOptions options = batch_options(1);
    options.batch->regime = regime;
    const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    EXPECT_EQ((*engine)->options().schedule.eviction, find_batch_regime(regime)->eviction) << regime;
    EXPECT_EQ((*engine)->options().schedule.policy, "on-demand") << regime;
  }
}

TEST(Batch, RefusesWhatCannotRun) {
  EngineOptions options = batch_options(4);
  options.drafter = "none";
  const std::unique_ptr<Engine> engine = open(options);
  Batch batch(*engine);
  BatchRequest request;
  EXPECT_EQ(batch.submit(request).kind(), StatusKind::kUsage);
  request.prompt.assign(kContext, 5);
  EXPECT_EQ(batch.submit(request).kind(), StatusKind::kUsage);
  request.prompt.resize(10);
  request.sampling.rejection = true;
  EXPECT_EQ(batch.submit(request).kind(), StatusKind::kUsage);
  request.sampling = {};
  request.sampling.temperature = -1;
  EXPECT_EQ(batch.submit(request).kind(), StatusKind::kUsage);
  EXPECT_TRUE(batch.idle());
  // One whose grammar is none fails alone; one that may say nothing ends at once.
  request.sampling = {};
  request.sampling.grammar = "root ::= [";
  request.id = 1;
  ASSERT_TRUE(batch.submit(request).ok());
  request.sampling = {};
  request.id = 2;
  request.token_limit = 0;
  ASSERT_TRUE(batch.submit(request).ok());
  request.id = 3;
  request.token_limit = 3;
  ASSERT_TRUE(batch.submit(request).ok());
  std::vector<BatchResult> results;
  while (!batch.idle()) {
    ASSERT_TRUE(batch.step().ok());
    for (BatchResult& result : batch.take_finished()) results.push_back(std::move(result));
  }
  ASSERT_EQ(results.size(), 3U);
  for (const BatchResult& result : results) {
    EXPECT_EQ(result.status.ok(), result.id != 1);
    EXPECT_EQ(result.generated_tokens, result.id == 3 ? 3 : 0);
  }
}

}  // namespace
}  // namespace drafthorse
