// Reads that fail, files that shrink and Ctrl-C: never a wrong token, never a crash, and what comes after works.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "end_to_end/generation.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

constexpr int64_t kTokens = 16;
constexpr int kFewSlots = 2;
// Loading takes the first few reads, the prompt about twenty, each token some more.
constexpr int64_t kLastRead = 60;

const std::string kTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
const std::string kDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";

using Tokens = std::vector<int32_t>;

// Few slots: nearly every token reads experts, so faults hit loading, prefill and decoding.
EngineOptions options_with(int slots) {
  EngineOptions options;
  options.target_path = kTarget;
  options.context = 512;
  options.ram_bytes = uint64_t{2} << 30;
  options.threads = 1;
  options.expert_slots = slots;
  return options;
}

EngineOptions with_draft(EngineOptions options) {
  options.draft_path = kDraft;
  options.draft_depth = 4;
  return options;
}

EngineOptions with_faults(EngineOptions options, const InjectedFaults& faults) {
  options.queue_factory = [faults](const FileSet& files) -> Result<std::unique_ptr<ReadQueue>> {
    ASSIGN_OR_RETURN(std::unique_ptr<ReadQueue> queue, make_uring_queue(files));
    return make_fault_injecting_queue(std::move(queue), faults);
  };
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

Tokens prompt_of(const Engine& engine) { return engine.tokenizer().tokenize(read_prompts(1).at(0)); }

// Long enough to be prefilled layer by layer.
Tokens long_prompt_of(const Engine& engine) {
  std::string text;
  for (const std::string& prompt : read_prompts(60)) text += prompt + "\n\n";
  Tokens tokens = engine.tokenizer().tokenize(text);
  tokens.resize(400);
  return tokens;
}

bool is_prefix(const Tokens& part, const Tokens& whole) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

class Faults : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::unique_ptr<Engine> engine = open(options_with(64));
    ASSERT_NE(engine, nullptr);
    const Generated text = generate(*engine, prompt_of(*engine), kTokens);
    ASSERT_TRUE(text.status.ok()) << text.status.message();
    reference_ = new Tokens(text.tokens);
  }
  static void TearDownTestSuite() { delete reference_; }

  static void expect_reference(Engine& engine, const std::string& what) {
    const Generated text = generate(engine, prompt_of(engine), kTokens);
    ASSERT_TRUE(text.status.ok()) << what << ": " << text.status.message();
    ASSERT_EQ(text.tokens, *reference_) << what;
    engine.target().cache->check_invariants();
  }

  static void expect_reference(const EngineOptions& options, const std::string& what) {
    const std::unique_ptr<Engine> engine = open(options);
    ASSERT_NE(engine, nullptr) << what;
    expect_reference(*engine, what);
  }

  struct Variant {
    std::string name;
    EngineOptions options;
    int64_t step;  // every so many reads one is tried
  };
  static std::vector<Variant> variants() {
    return {{"2 slots", options_with(kFewSlots), 1},
            {"64 slots", options_with(64), 4},
            {"2 slots and a draft", with_draft(options_with(kFewSlots)), 3}};
  }

  static Tokens* reference_;
};

Tokens* Faults::reference_ = nullptr;

void expect_read_error(const Status& status, const std::string& what) {
  EXPECT_EQ(status.kind(), StatusKind::kRuntime) << what << ": " << status.message();
  for (const std::string& part :
       {std::string(".gguf"), std::string("offset "), std::string("Input/output error"), std::string("errno 5")}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << what << ": " << status.message();
  }
}

TEST_F(Faults, ReferenceIsText) { EXPECT_EQ(reference_->size(), static_cast<size_t>(kTokens)); }

TEST_F(Faults, OneFailedReadIsTriedAgain) {
  for (const auto& [name, options, step] : variants()) {
    for (int64_t at = 0; at <= kLastRead; at += step) {
      expect_reference(with_faults(options, {.fail_at = at}), fmt::format("{}, read {} fails", name, at));
    }
    for (const int64_t at : {100, 150, 200, 300, 400}) {
      expect_reference(with_faults(options, {.fail_at = at}), fmt::format("{}, read {} fails", name, at));
    }
  }
}

TEST_F(Faults, RetriesAreCounted) {
  const std::unique_ptr<Engine> engine = open(with_faults(options_with(kFewSlots), {.fail_at = 60}));
  ASSERT_NE(engine, nullptr);
  expect_reference(*engine, "read 60 fails");
  EXPECT_EQ(engine->target().cache->read_retries(), 1);
}

TEST_F(Faults, ShortReadsAreContinued) {
  for (const auto& [name, options, step] : variants()) {
    for (int64_t at = 0; at <= kLastRead; at += step) {
      expect_reference(with_faults(options, {.short_at = at}), fmt::format("{}, read {} is short", name, at));
    }
  }
}

// Failing a few times in a row may exhaust the attempts of one read; then the error is told, and no token is wrong.
TEST_F(Faults, SeveralFailedReads) {
  for (const auto& [name, options, step] : variants()) {
    for (int64_t at = 0; at <= kLastRead; at += 4 * step) {
      for (const int64_t count : {2, 3, 6}) {
        const std::string what = fmt::format("{}, reads {} to {} fail", name, at, at + count - 1);
        Result<std::unique_ptr<Engine>> engine =
            Engine::open(with_faults(options, {.fail_at = at, .fail_count = count}), {});
        if (!engine.ok()) {
          expect_read_error(engine.status(), what);
          continue;
        }
        const Generated text = generate(**engine, prompt_of(**engine), kTokens);
        if (!text.status.ok()) expect_read_error(text.status, what);
        ASSERT_TRUE(is_prefix(text.tokens, *reference_)) << what;
        // The device works again, so the next session does, on the same engine.
        expect_reference(**engine, what + ", next session");
      }
    }
  }
}

TEST_F(Faults, BrokenDeviceIsToldWithPlaceAndReason) {
  int opened = 0;
  int failed_later = 0;
  for (const auto& [name, options, step] : variants()) {
    for (int64_t at = 0; at <= kLastRead; at += step) {
      const std::string what = fmt::format("{}, all reads from {} fail", name, at);
      Result<std::unique_ptr<Engine>> engine =
          Engine::open(with_faults(options, {.fail_at = at, .fail_count = -1}), {});
      if (!engine.ok()) {
        expect_read_error(engine.status(), what);
        continue;
      }
      ++opened;
      for (int session = 0; session < 3; ++session) {
        const Generated text = generate(**engine, prompt_of(**engine), kTokens);
        ASSERT_TRUE(is_prefix(text.tokens, *reference_)) << what;
        if (text.status.ok()) {
          ASSERT_EQ(text.tokens, *reference_) << what;
        } else {
          expect_read_error(text.status, what);
          ++failed_later;
        }
        (*engine)->target().cache->check_invariants();
      }
    }
  }
  EXPECT_GT(opened, 0);
  EXPECT_GT(failed_later, 0);
}

TEST_F(Faults, BrokenDeviceDuringALongPrompt) {
  for (int64_t at = 8; at <= 200; at += 8) {
    const std::unique_ptr<Engine> engine = open(with_faults(options_with(9), {.fail_at = at, .fail_count = -1}));
    ASSERT_NE(engine, nullptr);
    Session session(*engine);
    const Status status = session.prefill(long_prompt_of(*engine));
    if (!status.ok()) expect_read_error(status, fmt::format("all reads from {} fail", at));
    engine->target().cache->check_invariants();
  }
}

class ShrinkingFile : public Faults {
 protected:
  void SetUp() override {
    std::filesystem::copy_file(kTarget, path_);
    std::filesystem::permissions(path_, std::filesystem::perms::owner_write, std::filesystem::perm_options::add);
    bytes_ = std::filesystem::file_size(path_);
  }

  void expect_names_the_file(const Status& status) const {
    EXPECT_TRUE(status.kind() == StatusKind::kFile || status.kind() == StatusKind::kRuntime) << status.message();
    EXPECT_NE(status.message().find(path_), std::string::npos) << status.message();
  }

  // Back to what it was, on the same inode.
  void restore() const {
    std::ifstream from(kTarget, std::ios::binary);
    std::fstream to(path_, std::ios::binary | std::ios::in | std::ios::out);
    to << from.rdbuf();
    ASSERT_TRUE(to.flush().good());
  }

  const TempDir folder_;
  const std::string path_ = folder_.file("target.gguf");
  uint64_t bytes_ = 0;
};

TEST_F(ShrinkingFile, IsNoticed) {
  for (const char* io : {"uring", "pread"}) {
    for (const uint64_t rest : {bytes_ / 2, bytes_ / 2 + 1234, bytes_ / 4 / 4096 * 4096, uint64_t{0}}) {
      SCOPED_TRACE(fmt::format("{}, {} bytes left", io, rest));
      EngineOptions options = options_with(kFewSlots);
      options.target_path = path_;
      options.io = io;
      const std::unique_ptr<Engine> engine = open(options);
      ASSERT_NE(engine, nullptr);
      Session session(*engine);
      ASSERT_TRUE(session.prefill(prompt_of(*engine)).ok());
      Tokens tokens;
      Status status;
      for (int64_t i = 0; i < kTokens && status.ok(); ++i) {
        if (i == 4) std::filesystem::resize_file(path_, rest);
        const Result<Tokens> step = session.decode_step();
        if (step.ok())
          tokens.insert(tokens.end(), step->begin(), step->end());
        else
          status = step.status();
      }
      EXPECT_TRUE(is_prefix(tokens, *reference_));
      EXPECT_GE(tokens.size(), 4U);
      ASSERT_FALSE(status.ok());
      expect_names_the_file(status);

      const Generated next = generate(*engine, prompt_of(*engine), kTokens);
      expect_names_the_file(next.status);
      EXPECT_TRUE(is_prefix(next.tokens, *reference_));
      restore();
      expect_reference(*engine, "the file is whole again");
    }
  }
}

class Interrupt : public Faults {
 protected:
  // Interrupts from another thread as soon as the engine's thread says so.
  class Interrupter {
   public:
    explicit Interrupter(Engine& engine)
        : thread_([this, &engine] {
            go_.wait(false);
            engine.interrupt();
          }) {}
    ~Interrupter() {
      now();
      thread_.join();
    }
    Interrupter(const Interrupter&) = delete;
    Interrupter& operator=(const Interrupter&) = delete;
    void now() {
      go_ = true;
      go_.notify_one();
    }

   private:
    std::atomic<bool> go_ = false;
    std::thread thread_;
  };

  static void expect_reference_after(Engine& engine) {
    EXPECT_TRUE(engine.interrupted());
    engine.target().cache->check_invariants();
    engine.clear_interrupt();
    expect_reference(engine, "after an interrupt");
  }
};

TEST_F(Interrupt, BeforeAnything) {
  const std::unique_ptr<Engine> engine = open(options_with(kFewSlots));
  ASSERT_NE(engine, nullptr);
  engine->interrupt();
  EXPECT_EQ(generate(*engine, prompt_of(*engine), kTokens).status.kind(), StatusKind::kInterrupted);
  expect_reference_after(*engine);
}

TEST_F(Interrupt, DuringPrefill) {
  for (const Variant& variant : variants()) {
    SCOPED_TRACE(variant.name);
    const std::unique_ptr<Engine> engine = open(variant.options);
    ASSERT_NE(engine, nullptr);
    for (const double part : {0.25, 0.5, 0.75}) {
      Status status;
      {
        Interrupter interrupter(*engine);
        Session session(*engine);
        status = session.prefill(long_prompt_of(*engine), [&](double done) {
          if (done < part) return;
          interrupter.now();
          // The next layer begins with the flag set.
          while (!engine->interrupted()) std::this_thread::yield();
        });
      }
      EXPECT_EQ(status.kind(), StatusKind::kInterrupted) << status.message();
      expect_reference_after(*engine);
    }
  }
}

TEST_F(Interrupt, DuringDecoding) {
  for (const Variant& variant : variants()) {
    SCOPED_TRACE(variant.name);
    const std::unique_ptr<Engine> engine = open(variant.options);
    ASSERT_NE(engine, nullptr);
    for (int round = 0; round < 10; ++round) {
      Tokens tokens;
      Status status;
      {
        Interrupter interrupter(*engine);
        Session session(*engine);
        ASSERT_TRUE(session.prefill(prompt_of(*engine)).ok());
        while (status.ok() && session.stop_reason() == StopReason::kNone) {
          if (static_cast<int>(tokens.size()) >= round) interrupter.now();
          const Result<Tokens> step = session.decode_step();
          if (step.ok())
            tokens.insert(tokens.end(), step->begin(), step->end());
          else
            status = step.status();
        }
      }
      EXPECT_EQ(status.kind(), StatusKind::kInterrupted) << status.message();
      tokens.resize(std::min(tokens.size(), reference_->size()));
      EXPECT_TRUE(is_prefix(tokens, *reference_));
      expect_reference_after(*engine);
    }
  }
}

}  // namespace
}  // namespace drafthorse
