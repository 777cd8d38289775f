// The engine on a device: ggml's RPC backend over the CPU, whose memory the host cannot touch, in a process of its own.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/host_memory.h"
#include "end_to_end/agreement.h"
#include "end_to_end/on_device.h"
#include "engine/calibration.h"
#include "engine/calibration_text.h"
#include "schedule/policy.h"
#include "support/device_server_process.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

constexpr int kAllSlots = 1 << 20;

TEST_F(OnDevice, ReferenceIsRealText) {
  ASSERT_EQ(reference().size(), kPrompts);
  size_t tokens = 0;
  for (const auto& text : reference()) tokens += text.size();
  EXPECT_GE(tokens, kPrompts * kTokens * 3 / 4);
}

TEST_F(OnDevice, FixedPlacementGivesTheSameTextAtAnyDepth) {
  for (const char* drafter : {"model", "shared-kv", "ngram", "resident", "auto"}) {
    for (const int depth : {0, 1, 4, 8, 15, -1}) {
      EngineOptions drafted = drafting(drafter, depth);
      if (drafted.drafter == "resident") drafted.device_slots = 40;  // else nothing is left out
      expect_same(drafted, fmt::format("drafter {}, depth {}", drafter, depth));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(OnDevice, FixedPlacementGivesTheSameTextWithAnySlots) {
  for (const int device_slots : {1, 3, 7, 40, kAllSlots}) {
    for (const int ram_slots : {2, 13, kAllSlots}) {
      if (device_slots == 1 && ram_slots == 13) continue;
      EngineOptions few = drafting("model", device_slots % 3 == 0 ? 0 : 4);
      few.device_slots = device_slots;
      few.expert_slots = ram_slots;
      expect_same(few, fmt::format("{} slots on the device, {} in RAM", device_slots, ram_slots));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(OnDevice, FixedPlacementGivesTheSameTextWithAnyEviction) {
  for (const std::string& eviction : eviction_policy_names()) {
    EngineOptions few = drafting("model", 4);
    few.schedule.eviction = eviction;
    few.device_slots = 9;
    few.expert_slots = 20;
    expect_same(few, eviction);
  }
}

// A drafter that routes among the experts in slots: with most of them there it is right more often than not.
TEST_F(OnDevice, ResidentsDraft) {
  EngineOptions some = drafting("resident", 4);
  some.device_slots = 52;
  Result<std::unique_ptr<Engine>> engine = Engine::open(some, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  const Generated result = generate(**engine, (*engine)->tokenizer().tokenize(read_prompts(1).front()), kTokens);
  ASSERT_TRUE(result.status.ok());
  EXPECT_EQ(result.tokens, reference()[0]);
  EXPECT_GT(result.stats.drafted_tokens, 20);
  EXPECT_GT(result.stats.accepted_tokens, result.stats.drafted_tokens / 2);
}

// Routers fitted to the pair lie in a file of their own, and are the device's like the others.
TEST_F(OnDevice, FittedRoutersForetell) {
  const TempDir folder;
  EngineOptions calibrating = options("auto");
  calibrating.device.name = "cpu";
  calibrating.draft_path = kDenseDraft;
  calibrating.drafter = "model";
  calibrating.context = kCalibrationWindow;
  calibrating.schedule.policy = "next-use";
  calibrating.calibration_positions = 2000;
  const std::string file = folder.file("fitted.gguf");
  {
    Result<std::unique_ptr<Engine>> engine = Engine::open(calibrating, {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    const std::span<const std::string_view> own = own_openings();
    const auto texts =
        write_texts(**engine, std::vector<std::string>(own.begin(), own.end()), Writer::kDraft, 2000, LoadProgress());
    ASSERT_TRUE(texts.ok());
    const Result<CalibrationResult> fitted = calibrate(**engine, *texts, {});
    ASSERT_TRUE(fitted.ok()) << fitted.status().message();
    const ModelFile target{(*engine)->target_index(), (*engine)->target().model->config()};
    const ModelFile draft{(*engine)->draft_index(), (*engine)->draft().model->config()};
    ASSERT_TRUE(write_fitted_routers(file, target, draft, fitted->routers).ok());
  }
  const auto recall_on = [&](const std::string& device) {
    EngineOptions few = drafting("model", 4);
    few.device.name = device;
    few.device_slots = 48;
    few.expert_slots = 48;
    few.fitted_path = file;
    few.schedule.policy = "auto";
    few.schedule.predictor = "fitted";
    int64_t hits = 0;
    int64_t used = 0;
    Result<std::unique_ptr<Engine>> engine = Engine::open(few, {});
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    if (!engine.ok()) return 0.0;
    for (const std::string& prompt : read_prompts(kPrompts)) {
      EXPECT_TRUE(generate(**engine, (*engine)->tokenizer().tokenize(prompt), kTokens).status.ok());
      for (const LayerForecastStats& layer : (*engine)->schedule().scheduler()->stats()) {
        hits += layer.hits;
        used += layer.used;
      }
    }
    return static_cast<double>(hits) / static_cast<double>(std::max<int64_t>(1, used));
  };
  const double on_device = recall_on(server_->device());
  EXPECT_GT(on_device, 0.5);
  EXPECT_NEAR(on_device, recall_on("cpu"), 0.03);
}

// Quantised keys and values are those of the CPU.
TEST_F(OnDevice, KeysAndValuesMayBeEightBits) {
  EngineOptions packed = options("auto");
  packed.kv_type = "q8_0";
  Logits logits[2];
  for (const bool cpu : {false, true}) {
    if (cpu) packed.device.name = "cpu";
    Result<std::unique_ptr<Engine>> engine = Engine::open(packed, {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    logits[cpu ? 1 : 0] = our_logits(**engine, (*engine)->tokenizer().tokenize(read_prompts(1).front()));
  }
  EXPECT_LT(relative_rms(logits[0], logits[1]), 2e-2);
  const Logits plain = [&] {
    Result<std::unique_ptr<Engine>> engine = Engine::open(options("auto"), {});
    return our_logits(**engine, (*engine)->tokenizer().tokenize(read_prompts(1).front()));
  }();
  EXPECT_FALSE(logits[0] == plain);
}

// The least RAM there is cannot hold what is copied ahead; nobody waits for it for ever.
TEST_F(OnDevice, LittleRamCopiesNothingAhead) {
  EngineOptions least = drafting("model", 4);
  least.draft_path = kQuantizedDraft;
  least.schedule.policy = "sp-moe-sync";
  least.device_slots = 40;
  for (const int ram_slots : {2, 3}) {
    least.expert_slots = ram_slots;
    expect_same(least, fmt::format("{} slots in RAM", ram_slots));
  }
}

// An expert that comes, goes and comes again while the link is still busy with the first of its copies.
TEST_F(OnDevice, TheSameExpertComesTwice) {
  EngineOptions few = options("auto");
  few.device_slots = 1;
  few.expert_slots = 24;
  Result<std::unique_ptr<Engine>> engine = Engine::open(few, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  const std::vector<int32_t> prompt = (*engine)->tokenizer().tokenize(read_prompts(1).front());
  ASSERT_TRUE(generate(**engine, prompt, 8).status.ok());
  LoadedModel& target = (*engine)->target();
  DeviceTier& tier = target.device_experts->tier();
  tier.set_link_bytes_per_s(1);  // it will be busy for long
  tier.set_background_limit(uint64_t{1} << 50);
  std::vector<ExpertKey> in_ram;
  for (int32_t e = 0; e < target.model->config().n_expert; ++e) {
    const ExpertKey key{LayerId{1}, ExpertId{e}};
    if (target.cache->resident(key) && !tier.resident(key)) in_ram.push_back(key);
  }
  ASSERT_GE(in_ram.size(), 2U);
  for (const size_t which : {0, 1, 0, 1}) {
    EXPECT_EQ(tier.prefetch(in_ram[which]), Prefetched::kStarted);
    EXPECT_TRUE(tier.resident(in_ram[which]));
    tier.begin_turn(LayerId{1});
  }
  tier.settle();
  target.cache->check_invariants();
  EXPECT_TRUE(generate(**engine, prompt, 8).status.ok());
}

// What policies plan ahead for is the device's slots, from RAM and through it from the SSD, and changes no text.
TEST_F(OnDevice, PoliciesBringExpertsAhead) {
  for (const SchedulePolicy& policy : schedule_policies()) {
    for (const int ram_slots : {12, kAllSlots}) {
      SCOPED_TRACE(fmt::format("{}, {} slots in RAM", policy.name, ram_slots));
      EngineOptions few = drafting("model", 4);
      few.draft_path = kQuantizedDraft;  // of the target's width, for the predictors that ask for it
      few.schedule.policy = policy.name;
      few.device_slots = 48;
      few.expert_slots = ram_slots;
      Result<std::unique_ptr<Engine>> engine = Engine::open(few, {});
      ASSERT_TRUE(engine.ok()) << engine.status().message();
      DeviceExperts& experts = *(*engine)->target().device_experts;
      DeviceLayerStats total;
      const std::vector<std::string> prompts = read_prompts(kPrompts);
      for (size_t i = 0; i < prompts.size(); ++i) {
        const Generated result = generate(**engine, (*engine)->tokenizer().tokenize(prompts[i]), kTokens);
        ASSERT_TRUE(result.status.ok()) << result.status.message();
        EXPECT_EQ(result.tokens, reference()[i]) << "prompt " << i;
        experts.slots().check_invariants();
        (*engine)->target().cache->check_invariants();
        total = total_of({total, total_of(experts.stats())});
      }
      if (policy.prefetch == "none") {
        EXPECT_EQ(total.prefetched, 0);
      } else {
        EXPECT_GT(total.prefetched, 20);
        EXPECT_GT(total.prefetched_used, 0);
      }
      EXPECT_LE(total.prefetched_used, total.prefetched);
    }
  }
}

// Without the promise: what differs, differs at near ties.
TEST_F(OnDevice, FastPlacementDivergesAtNearTiesAlone) {
  int count = 0;
  for (const int depth : {0, 4, 8}) {
    for (const int slots : {3, kAllSlots}) {
      EngineOptions fast = drafting("model", depth, "auto");
      fast.device_slots = slots;
      count += divergences(options(), fast);
    }
  }
  std::cout << count << " of " << 6 * kPrompts << " texts diverge\n";
}

TEST_F(OnDevice, TheCpuDivergesAtNearTiesAlone) {
  EngineOptions cpu = options();
  cpu.device = {};
  cpu.device.name = "cpu";
  std::cout << divergences(options(), cpu) << " of " << kPrompts << " texts diverge\n";
}

// Whoever computes a missing expert, it is the same function.
TEST_F(OnDevice, MissesAreComputedOnEitherSide) {
  for (const double host_bytes_per_s : {1.0, 1e15}) {
    EngineOptions few = options("auto");
    few.device_slots = 5;
    Result<std::unique_ptr<Engine>> engine = Engine::open(few, {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    DeviceExperts& experts = *(*engine)->target().device_experts;
    experts.set_costs({1e9, host_bytes_per_s, host_bytes_per_s});
    const std::vector<int32_t> prompt = (*engine)->tokenizer().tokenize(read_prompts(1).front());
    const Generated result = generate(**engine, prompt, kTokens);
    ASSERT_TRUE(result.status.ok());
    const DeviceLayerStats total = total_of(experts.stats());
    if (host_bytes_per_s > 1e12) {
      EXPECT_GT(total.on_host, 100);
    } else {
      EXPECT_EQ(total.on_host, 0);
      EXPECT_GT(total.copied, 100);
    }
    // The text itself, as long as no near tie comes: at least its beginning.
    ASSERT_GE(result.tokens.size(), 8U);
    EXPECT_TRUE(std::equal(result.tokens.begin(), result.tokens.begin() + 8, reference()[0].begin()));
  }
}

// With room for all experts nothing is missing from the first token on.
TEST_F(OnDevice, SlotsAreFullBeforeTheFirstToken) {
  for (const int slots : {5, kAllSlots}) {
    EngineOptions some = options("auto");
    some.device_slots = slots;
    Result<std::unique_ptr<Engine>> engine = Engine::open(some, {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    DeviceExperts& experts = *(*engine)->target().device_experts;
    EXPECT_EQ(experts.slots().held(), experts.slots().slots());
    if (slots != kAllSlots) continue;
    ASSERT_TRUE(generate(**engine, (*engine)->tokenizer().tokenize("Once"), 8).status.ok());
    const DeviceLayerStats total = total_of(experts.stats());
    EXPECT_GT(total.hits, 0);
    EXPECT_EQ(total.copied + total.on_host, 0);
  }
}

TEST_F(OnDevice, TheHostWaitsOncePerLayerWithExperts) {
  for (const char* placement : {"fixed", "auto"}) {
    Result<std::unique_ptr<Engine>> engine = Engine::open(drafting("ngram", 4, placement), {});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    LoadedModel& target = (*engine)->target();
    const int moe_layers = target.model->layout().moe_layers();
    const std::vector<int32_t> window = {1, 2, 3};
    ASSERT_TRUE(target.pass->run(window, 3).ok());  // builds graphs, of which the device must hold none
    const int64_t before = (*engine)->device()->waits();
    ASSERT_TRUE(target.pass->run(window, 3).ok());
    EXPECT_EQ((*engine)->device()->waits() - before, moe_layers + 1) << placement;  // and one for the logits
    EXPECT_EQ(total_of(target.device_experts->stats()).extra_waits, 0);
  }
}

// What the promise of fixed placement rests on: a token's logits have the same bits whatever window it is verified in,
// with whatever slots. In the default they have not, or this test would show nothing.
TEST_F(OnDevice, FixedPlacementGivesTheSameBitsInAnyWindow) {
  const auto logits_in_windows = [](const EngineOptions& options, size_t window) {
    Logits logits;
    Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    if (!engine.ok()) return logits;
    const std::vector<int32_t> tokens = (*engine)->tokenizer().tokenize(read_prompts(1).front());
    ForwardPass& pass = *(*engine)->target().pass;
    for (size_t i = 0; i < tokens.size(); i += window) {
      const size_t count = std::min(window, tokens.size() - i);
      EXPECT_TRUE(pass.run(std::span(tokens).subspan(i, count), static_cast<int32_t>(count)).ok());
      for (size_t t = 0; t < count; ++t) {
        const std::span<const float> row = pass.logits(static_cast<int32_t>(t));
        logits.emplace_back(row.begin(), row.end());
      }
    }
    return logits;
  };
  const Logits alone = logits_in_windows(drafting("ngram", 15), 1);
  for (const size_t window : {2, 5, 16}) {
    EngineOptions few = drafting("ngram", 15);
    few.device_slots = static_cast<int>(window);
    few.expert_slots = 20;
    EXPECT_TRUE(logits_in_windows(few, window) == alone) << window;
  }
  EXPECT_FALSE(logits_in_windows(drafting("ngram", 15, "auto"), 1) ==
               logits_in_windows(drafting("ngram", 15, "auto"), 5));
}

// Reads that fail now and then are tried again; those that stay broken fail the pass, and what comes after works.
TEST_F(OnDevice, FailingReadsAndInterruptionsLeaveItWorking) {
  EngineOptions few = drafting("ngram", 4);
  few.device_slots = 3;
  few.expert_slots = 4;
  int failed = 0;
  for (const int64_t from : {0, 60, 150, 300}) {
    EngineOptions broken = few;
    broken.queue_factory = [from](const FileSet& files) -> Result<std::unique_ptr<ReadQueue>> {
      ASSIGN_OR_RETURN(std::unique_ptr<ReadQueue> queue, make_uring_queue(files));
      return make_fault_injecting_queue(std::move(queue), {.fail_at = from, .fail_count = 40});
    };
    Result<std::unique_ptr<Engine>> engine = Engine::open(broken, {});
    if (!engine.ok()) {
      ++failed;
      continue;
    }
    const std::vector<int32_t> prompt = (*engine)->tokenizer().tokenize(read_prompts(1).front());
    Generated again = generate(**engine, prompt, kTokens);
    // Every failed pass uses up some of the failures.
    for (int i = 0; i < 40 && !again.status.ok(); ++i) {
      ++failed;
      again = generate(**engine, prompt, kTokens);
    }
    EXPECT_TRUE(again.status.ok()) << again.status.message();
    EXPECT_EQ(again.tokens, reference()[0]);
  }
  EXPECT_GT(failed, 0);

  Result<std::unique_ptr<Engine>> engine = Engine::open(few, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  Session session(**engine);
  session.set_token_limit(kTokens);
  ASSERT_TRUE(session.prefill((*engine)->tokenizer().tokenize(read_prompts(1).front())).ok());
  std::vector<int32_t> tokens;
  while (session.stop_reason() == StopReason::kNone) {
    (*engine)->interrupt();
    const StatusKind interrupted = session.decode_step().status().kind();
    (*engine)->clear_interrupt();
    if (session.stop_reason() != StopReason::kNone) break;  // there was nothing left to interrupt
    EXPECT_EQ(interrupted, StatusKind::kInterrupted);
    const Result<std::vector<int32_t>> step = session.decode_step();
    ASSERT_TRUE(step.ok()) << step.status().message();
    tokens.insert(tokens.end(), step->begin(), step->end());
  }
  EXPECT_EQ(tokens, reference()[0]);
}

TEST_F(OnDevice, LongPromptsAreLikeDecoding) {
  EngineOptions with_context = options("auto");
  with_context.context = 1024;
  with_context.device_slots = 11;
  Result<std::unique_ptr<Engine>> engine = Engine::open(with_context, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  std::string text;
  for (const std::string& prompt : read_prompts(40)) text += prompt + "\n\n";
  std::vector<int32_t> tokens = (*engine)->tokenizer().tokenize(text);
  tokens.resize(700);  // more than one run
  ForwardPass& pass = *(*engine)->target().pass;
  ASSERT_TRUE(pass.run(tokens, 1).ok());
  const Logits together = {{pass.logits(0).begin(), pass.logits(0).end()}};
  const Logits alone = {our_logits(**engine, tokens).back()};
  EXPECT_LT(relative_rms(together, alone), 2e-2);
}

TEST_F(OnDevice, BudgetsTooSmallAreRefusedNamingTheLeast) {
  EngineOptions small = drafting("model", 4);
  small.device.vram_bytes = kMiB;
  const Status refused = Engine::open(small, {}).status();
  EXPECT_EQ(refused.kind(), StatusKind::kMemory);
  const size_t at = refused.message().find("--vram ");
  ASSERT_NE(at, std::string::npos) << refused.message();
  const uint64_t least = std::strtoull(refused.message().c_str() + at + 7, nullptr, 10) * kMiB;
  small.device.vram_bytes = least;
  expect_same(small, "the least budget");
  small.device.vram_bytes = least - kMiB;
  EXPECT_EQ(Engine::open(small, {}).status().kind(), StatusKind::kMemory);
}

TEST_F(OnDevice, LedgerHoldsWhatIsTaken) {
  EngineOptions some = drafting("model", 4);
  some.device.vram_bytes = 40 * kMiB;
  Result<std::unique_ptr<Engine>> engine = Engine::open(some, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  EXPECT_LE((*engine)->device_ledger().total(), 40 * kMiB);
  EXPECT_GT((*engine)->device_ledger().bytes("expert slots"), 0U);
  EXPECT_GT((*engine)->device_ledger().bytes("draft dense weights"), 0U);
}

// The device has less memory than the budget says: for activations, or for slots.
TEST_F(OnDevice, ExhaustedMemoryIsAMessage) {
  static std::vector<DeviceServerProcess*> small;  // until the process ends, as above
  for (const int mebibytes : {18, 28}) {
    small.push_back(new DeviceServerProcess(mebibytes));
    EngineOptions much = options();
    much.context = 2048;
    much.device.servers.push_back(small.back()->endpoint());
    much.device.name = small.back()->device();
    much.device.vram_bytes = uint64_t{1} << 30;
    const Status refused = Engine::open(much, {}).status();
    EXPECT_EQ(refused.kind(), StatusKind::kMemory) << mebibytes;
    EXPECT_NE(refused.message().find("give a smaller --vram"), std::string::npos) << refused.message();
  }
  // The process goes on.
  EXPECT_TRUE(Engine::open(options(), {}).ok());
}

TEST_F(OnDevice, WhatItDoesNotDoIsRefused) {
  const auto message = [](const EngineOptions& options) {
    const Status status = Engine::open(options, {}).status();
    EXPECT_EQ(status.kind(), StatusKind::kUsage) << status.message();
    return status.message();
  };
  EngineOptions wrong = options();
  wrong.device.name = "CUDA7";
  EXPECT_NE(message(wrong).find("choose from"), std::string::npos);
  wrong = options();
  wrong.device.servers = {"127.0.0.1:1"};
  EXPECT_NE(message(wrong).find("no server answers"), std::string::npos);
  wrong.device.servers = {"nonsense"};
  EXPECT_NE(message(wrong).find("host:port"), std::string::npos);
  wrong = options();
  wrong.device.placement = "sideways";
  EXPECT_NE(message(wrong).find("not a placement"), std::string::npos);
  wrong = drafting("model", 4);
  wrong.calibration_positions = 100;
  EXPECT_NE(message(wrong).find("CPU"), std::string::npos);
  EXPECT_NE(message(drafting("model", 16)).find("--draft-depth 15"), std::string::npos);
}

TEST_F(OnDevice, ManyRequestsLeakNothing) {
  EngineOptions few = drafting("model", 4);
  few.device_slots = 6;
  Result<std::unique_ptr<Engine>> engine = Engine::open(few, {});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  const std::vector<int32_t> prompt = (*engine)->tokenizer().tokenize("Once");
  const auto serve = [&](int requests) {
    for (int i = 0; i < requests; ++i) ASSERT_TRUE(generate(**engine, prompt, 3).status.ok());
  };
  serve(100);
  const uint64_t before = resident_bytes();
  serve(1000);
  EXPECT_LT(resident_bytes(), before + kMiB);
}

}  // namespace
}  // namespace drafthorse
