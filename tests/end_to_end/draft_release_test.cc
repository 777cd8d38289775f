// Giving the draft model up for expert slots while a text is written: the text stays, the memory moves.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/host_memory.h"
#include "end_to_end/generation.h"
#include "engine/draft_trial.h"

namespace drafthorse {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int kFewSlots = 8;
constexpr int kMoreSlots = 56;

EngineOptions options_with(const std::string& draft) {
  EngineOptions options;
  options.target_path = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
  options.draft_path = draft;
  options.context = 512;
  options.threads = 1;
  options.ram_bytes = uint64_t{2} << 30;
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

// As with a budget that leaves room for few of the 64 experts beside the draft.
std::unique_ptr<Engine> open_tight(EngineOptions options) {
  options.expert_slots = kFewSlots;
  options.slots_without_draft = kMoreSlots;
  return open(options);
}

class ReleasingTheDraft : public testing::TestWithParam<const char*> {};

TEST_P(ReleasingTheDraft, AtAnyMomentTheTextStays) {
  const std::unique_ptr<Engine> alone = open(options_with(""));
  for (const int32_t after : {0, 1, 2, 5, 12}) {
    SCOPED_TRACE(after);
    const std::unique_ptr<Engine> engine = open_tight(options_with(GetParam()));
    ASSERT_NE(engine, nullptr);
    const Tokens prompt = engine->tokenizer().tokenize(read_prompts(4).back());
    const Generated expected = generate(*alone, prompt, 60);
    const int before = engine->memory_plan().slots;
    ASSERT_EQ(before, kFewSlots);
    ASSERT_TRUE(engine->can_release_draft());

    Session session(*engine);
    session.set_token_limit(60);
    ASSERT_TRUE(session.prefill(prompt).ok());
    Tokens tokens;
    for (int32_t step = 0; session.stop_reason() == StopReason::kNone; ++step) {
      if (step == after && engine->can_release_draft()) engine->release_draft();
      const Result<Tokens> added = session.decode_step();
      ASSERT_TRUE(added.ok()) << added.status().message();
      tokens.insert(tokens.end(), added->begin(), added->end());
      engine->target().cache->check_invariants();
    }
    EXPECT_EQ(tokens, expected.tokens);
    // Deep drafts may have ended the text in fewer steps.
    if (engine->can_release_draft()) engine->release_draft();
    EXPECT_TRUE(engine->draft_released());
    EXPECT_FALSE(engine->can_release_draft());
    EXPECT_GT(engine->memory_plan().slots, before);
    EXPECT_EQ(engine->target().cache->slots(), engine->memory_plan().slots);
    EXPECT_LE(engine->ledger().total(), engine->ram_budget_bytes());
    for (const MemoryLedger::Entry& entry : engine->ledger().entries()) {
      EXPECT_NE(entry.tag.substr(0, 5), "draft") << entry.tag;
    }
    // Another text on the same engine, and one more turn of this one.
    EXPECT_EQ(generate(*engine, prompt, 60).tokens, expected.tokens);
    ASSERT_TRUE(session.prefill(prompt).ok());
    EXPECT_FALSE(session.explain_depth().empty());
    EXPECT_TRUE(session.decode_step().ok());
  }
}

INSTANTIATE_TEST_SUITE_P(Drafts, ReleasingTheDraft,
                         testing::Values(DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf", DRAFTHORSE_QUANTIZED_DRAFT),
                         [](const auto& draft) { return draft.index == 0 ? "dense" : "copy"; });

TEST(DraftReleased, ItsMemoryGoesBackToTheSystem) {
  const std::unique_ptr<Engine> engine = open_tight(options_with(DRAFTHORSE_QUANTIZED_DRAFT));
  const Tokens prompt = engine->tokenizer().tokenize(read_prompts(1).back());
  Session session(*engine);
  ASSERT_TRUE(session.prefill(prompt).ok());
  ASSERT_TRUE(engine->target().cache->fill_and_wait({}).ok());
  const uint64_t weights = engine->ledger().bytes("draft experts") + engine->ledger().bytes("draft dense weights");
  const int more = engine->slots_without_draft() - engine->memory_plan().slots;
  const uint64_t before = resident_bytes();
  engine->release_draft();
  const uint64_t after = resident_bytes();
  // Slots are not touched before they are read into, but for the two that fill() asks for at once.
  const uint64_t slot = ExpertCache::slot_bytes(engine->target().model->layout());
  EXPECT_GT(more, 0);
  EXPECT_LT(after + weights * 9 / 10, before + 2 * slot) << before << " " << after << " " << weights;
}

// With a real budget, what the draft holds becomes slots.
TEST(DraftReleased, SlotsAreWhatItsMemoryBuys) {
  EngineOptions options = options_with(DRAFTHORSE_QUANTIZED_DRAFT);
  const std::unique_ptr<Engine> roomy = Engine::prepare(options).value();
  EXPECT_EQ(roomy->memory_plan().slots, 64);
  EXPECT_FALSE(roomy->can_release_draft());
  // Short of all experts by a few MiB; what the process itself takes differs from one opening to the next.
  *options.ram_bytes = roomy->ledger().total() - (uint64_t{4} << 20);
  const Result<std::unique_ptr<Engine>> tight = Engine::prepare(options);
  if (!tight.ok() || tight.value()->memory_plan().slots == 64) GTEST_SKIP() << "the process takes another amount now";
  const Engine& engine = *tight.value();
  EXPECT_TRUE(engine.can_release_draft());
  uint64_t draft_bytes = 0;
  for (const MemoryLedger::Entry& entry : engine.ledger().entries()) {
    if (entry.tag.substr(0, 5) == "draft") draft_bytes += entry.bytes;
  }
  const uint64_t slot = ExpertCache::slot_bytes(engine.target().model->layout());
  const uint64_t more = slot * static_cast<uint64_t>(engine.slots_without_draft() - engine.memory_plan().slots);
  EXPECT_LE(more, draft_bytes + (uint64_t{4} << 20));
  EXPECT_TRUE(engine.slots_without_draft() == 64 || more + slot + (uint64_t{4} << 20) > draft_bytes);
}

TEST(DraftReleased, NeverWhatWasAskedForOrIsRecorded) {
  EngineOptions options = options_with(DRAFTHORSE_QUANTIZED_DRAFT);
  options.drafter = "shared-kv";
  EXPECT_FALSE(open_tight(options)->can_release_draft());
  options.drafter = "auto";
  options.draft_depth = 4;
  EXPECT_FALSE(open_tight(options)->can_release_draft());
  options.draft_depth.reset();
  EXPECT_TRUE(open_tight(options)->can_release_draft());
  EXPECT_FALSE(open(options)->can_release_draft());  // all experts fit: there is nothing to gain
  EXPECT_FALSE(open_tight(options_with(""))->can_release_draft());
}

// A disk that lets whoever waits for it wait longer.
class SlowQueue final : public ReadQueue {
 public:
  SlowQueue(std::unique_ptr<ReadQueue> inner, std::chrono::microseconds per_wait)
      : inner_(std::move(inner)), per_wait_(per_wait) {}

  std::string_view name() const override { return inner_->name(); }
  size_t capacity() const override { return inner_->capacity(); }
  size_t in_flight() const override { return inner_->in_flight(); }
  void submit(std::span<const ReadRequest> requests) override { inner_->submit(requests); }
  size_t reap(std::span<ReadCompletion> out, bool wait) override {
    if (wait) std::this_thread::sleep_for(per_wait_);
    return inner_->reap(out, wait);
  }

 private:
  std::unique_ptr<ReadQueue> inner_;
  std::chrono::microseconds per_wait_;
};

// A session finds out by itself, says so, and writes what it would have written.
TEST(DraftReleased, BySessionsWhereReadsCostMoreThanDraftingBrings) {
  EngineOptions options = options_with(DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf");
  options.sampling.temperature = 1.5;  // a text that does not repeat itself
  options.sampling.seed = 5;
  options.queue_factory = [](const FileSet& files) -> Result<std::unique_ptr<ReadQueue>> {
    return std::unique_ptr<ReadQueue>(
        std::make_unique<SlowQueue>(make_pread_queue(files), std::chrono::microseconds(2000)));
  };
  const std::unique_ptr<Engine> engine = open_tight(options);
  const Tokens prompt = engine->tokenizer().tokenize(read_prompts(3).back());
  Session session(*engine);
  session.set_token_limit(200);
  ASSERT_TRUE(session.prefill(prompt).ok());
  const int before = engine->memory_plan().slots;
  Tokens tokens;
  while (session.stop_reason() == StopReason::kNone) {
    const Result<Tokens> added = session.decode_step();
    ASSERT_TRUE(added.ok());
    tokens.insert(tokens.end(), added->begin(), added->end());
  }
  EngineOptions alone = options_with("");
  alone.sampling = options.sampling;
  EXPECT_EQ(tokens, generate(*open(alone), prompt, 200).tokens);
  const std::optional<DraftRelease>& release = session.stats().draft_release;
  ASSERT_TRUE(release) << session.explain_depth();
  EXPECT_TRUE(engine->draft_released());
  EXPECT_GT(release->after_tokens, 0);
  EXPECT_EQ(release->slots_before, before);
  EXPECT_EQ(release->slots, engine->memory_plan().slots);
  EXPECT_GT(release->gain, 1);
  EXPECT_NE(session.explain_depth().find("made room for"), std::string::npos) << session.explain_depth();

  options.keep_draft = true;
  EXPECT_FALSE(open_tight(options)->can_release_draft());
}

// Along a real text, with a policy that is told of made-up times: what a miss costs and what drafting brings decide.
TEST(DraftTrial, GoesByWhatMissesCostAndDraftingBrings) {
  struct Case {
    double stall_per_miss_s;
    double draft_s;
    int accepted;
    bool goes;
  };
  constexpr int kDepth = 4;
  for (const Case& one : {Case{.1, .5, 0, true}, Case{.002, .0005, kDepth, false}, Case{1e-6, .5, 0, false}}) {
    SCOPED_TRACE(one.stall_per_miss_s);
    const std::unique_ptr<Engine> engine = open_tight(options_with(DRAFTHORSE_QUANTIZED_DRAFT));
    ForwardPass& pass = *engine->target().pass;
    const Tokens prompt = engine->tokenizer().tokenize(read_prompts(1).back());
    ASSERT_TRUE(pass.run(prompt, 0).ok());
    pass.record_prompt();
    DraftTrial trial(*engine->target().cache, engine->options().schedule.eviction, engine->slots_without_draft());
    DrafterPolicy policy({{"shared-kv", false}}, 16);
    const Generated text = generate(*open(options_with("")), prompt, 60);
    for (const int32_t token : text.tokens) {
      ASSERT_TRUE(pass.run(std::span(&token, 1), 1).ok());
      pass.record_committed(1);
      DraftChoice choice = policy.next(std::vector{kDepth});
      if (trial.wants_look(policy)) choice = policy.try_out(0, std::vector{kDepth});
      std::vector<int64_t> missing = pass.stats().missing_by_prefix;
      missing.resize(static_cast<size_t>(choice.depth) + 1, missing[0]);
      const double stall = one.stall_per_miss_s * static_cast<double>(missing.back());
      policy.observe({choice.depth, std::min(choice.depth, one.accepted), choice.depth * one.draft_s, .01 + stall,
                      stall, missing});
      trial.note_step(pass, 1, policy, std::vector{kDepth}, choice);
      EXPECT_LE(trial.missing_share(), 1);
      if (trial.should_go()) break;
    }
    EXPECT_EQ(trial.should_go(), one.goes) << trial.gain();
    EXPECT_EQ(trial.gain() > 1.05, one.goes) << trial.gain();
  }
}

}  // namespace
}  // namespace drafthorse
