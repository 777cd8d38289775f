// The edges of a session: odd prompt lengths, padded vocabularies, a session that goes on after an error.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <numeric>

#include "end_to_end/generation.h"
#include "support/temp_dir.h"
#include "support/tiny_model.h"

namespace drafthorse {
namespace {

const std::string kTarget = DRAFTHORSE_MODELS_DIR "/mixtral/target.gguf";
const std::string kDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";

using Tokens = std::vector<int32_t>;

EngineOptions options_for(const std::string& target, const std::string& draft) {
  EngineOptions options;
  options.target_path = target;
  options.draft_path = draft;
  options.ram_bytes = uint64_t{2} << 30;
  options.threads = 1;
  return options;
}

std::unique_ptr<Engine> open(const EngineOptions& options) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

Tokens some_tokens(const Engine& engine, size_t count) {
  Tokens tokens;
  while (tokens.size() < count) {
    for (const std::string& prompt : read_prompts(60)) {
      const Tokens more = engine.tokenizer().tokenize(prompt);
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
  }
  tokens.resize(count);
  return tokens;
}

std::string write(const TempDir& folder, const std::string& name, const TinyModelOptions& options) {
  const Result<std::string> path = write_tiny_model(folder.file(name), options);
  EXPECT_TRUE(path.ok()) << path.status().message();
  return *path;
}

// Overwrites the 32-bit value of a metadata key.
void patch_u32(const std::string& path, const std::string& key, uint32_t value) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  const size_t at = bytes.find(key);
  ASSERT_NE(at, std::string::npos);
  constexpr size_t kTypeBytes = 4;
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(at + key.size() + kTypeBytes));
  file.write(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Around the borders between chunks of a prefill (256 for the draft, 2048 for the target), where the positions that
// prime the depth policy may fall into two chunks.
TEST(Session, PromptLengthsAroundChunkBorders) {
  const std::unique_ptr<Engine> plain = open(options_for(kTarget, ""));
  const std::unique_ptr<Engine> drafted = open(options_for(kTarget, kDraft));
  for (const size_t length : {1, 2, 3, 24, 25, 26, 255, 256, 257, 258, 259, 280, 281, 282, 513, 514, 515, 2030, 2040}) {
    const Tokens prompt = some_tokens(*plain, length);
    const Generated expected = generate(*plain, prompt, 6);
    const Generated actual = generate(*drafted, prompt, 6);
    ASSERT_TRUE(expected.status.ok() && actual.status.ok()) << length;
    EXPECT_EQ(actual.tokens, expected.tokens) << length;
  }
}

TEST(Session, FillsTheContextExactly) {
  for (const char* draft : {"", kDraft.c_str()}) {
    for (const int32_t context : {2, 3, 12, 70}) {
      EngineOptions options = options_for(kTarget, draft);
      options.context = context;
      const std::unique_ptr<Engine> engine = open(options);
      const Tokens prompt = some_tokens(*engine, static_cast<size_t>(std::max(1, context / 2)));
      Session session(*engine);
      ASSERT_TRUE(session.prefill(prompt).ok());
      while (session.stop_reason() == StopReason::kNone) ASSERT_TRUE(session.decode_step().ok());
      EXPECT_EQ(session.stop_reason(), StopReason::kContextFull);
      EXPECT_EQ(session.text().size(), static_cast<size_t>(context));
      Session full(*engine);
      EXPECT_EQ(full.prefill(some_tokens(*engine, static_cast<size_t>(context))).kind(), StatusKind::kUsage);
    }
  }
}

// The vocabularies are the same but for padding: either model may propose or be shown a token the other lacks.
TEST(Session, PaddedVocabularies) {
  const TempDir folder;
  const std::string narrow = write(folder, "narrow.gguf", {.n_layer = 2, .n_ff = 256, .tied_head = false, .seed = 1});
  const std::string wide =
      write(folder, "wide.gguf", {.n_layer = 2, .n_ff = 256, .tied_head = false, .n_padding = 4096, .seed = 2});
  for (const auto& [target, draft] : {std::pair(narrow, wide), std::pair(wide, narrow)}) {
    const std::unique_ptr<Engine> plain = open(options_for(target, ""));
    const std::unique_ptr<Engine> drafted = open(options_for(target, draft));
    const Tokens prompt = some_tokens(*plain, 40);
    const Generated expected = generate(*plain, prompt, 40);
    const Generated actual = generate(*drafted, prompt, 40);
    ASSERT_TRUE(actual.status.ok()) << actual.status.message();
    EXPECT_EQ(actual.tokens, expected.tokens);
  }
}

TEST(Session, GoesOnAfterAFailureAnywhere) {
  const std::unique_ptr<Engine> reference = open(options_for(kTarget, ""));
  const Tokens prompt = some_tokens(*reference, 60);
  const Tokens expected = generate(*reference, prompt, 24).tokens;
  // The n-th read fails for good once: wherever that hits, the same session then goes on to the same text.
  int failures = 0;
  for (int64_t fail_at = 0; fail_at < 60; ++fail_at) {
    EngineOptions options = options_for(kTarget, kDraft);
    options.draft_depth = 4;
    options.expert_slots = 2;
    options.queue_factory = [fail_at](const FileSet& files) -> Result<std::unique_ptr<ReadQueue>> {
      ASSIGN_OR_RETURN(std::unique_ptr<ReadQueue> queue, make_uring_queue(files));
      // More failures in a row than there are attempts.
      return make_fault_injecting_queue(std::move(queue), {.fail_at = fail_at * 7 + 30, .fail_count = 12});
    };
    const std::unique_ptr<Engine> engine = open(options);
    Session session(*engine);
    session.set_token_limit(24);
    for (int attempt = 0; !session.prefill(prompt).ok(); ++attempt, ++failures) ASSERT_LT(attempt, 20);
    Tokens tokens;
    for (int failed = 0; session.stop_reason() == StopReason::kNone;) {
      ASSERT_LT(failed, 20);
      const Result<Tokens> step = session.decode_step();
      if (step.ok()) {
        tokens.insert(tokens.end(), step->begin(), step->end());
      } else {
        ++failures;
        ++failed;
      }
    }
    ASSERT_EQ(tokens, expected) << "reads fail from " << fail_at * 7 + 30;
    engine->target().cache->check_invariants();
  }
  EXPECT_GT(failures, 20);
}

TEST(Session, RefusesAbsurdHyperparametersAtOnce) {
  const TempDir folder;
  const auto refused = [&](const std::string& key, uint32_t value) {
    const std::string path = write(folder, "damaged.gguf", {.n_layer = 2, .n_ff = 256});
    patch_u32(path, key, value);
    const Result<std::unique_ptr<Engine>> engine = Engine::open(options_for(path, ""), {});
    ASSERT_FALSE(engine.ok()) << key << " = " << value;
    EXPECT_EQ(engine.status().kind(), StatusKind::kFile) << key << " = " << value;
  };
  for (const uint32_t value : {0U, 1U, 3U, 1U << 20, 0xFFFFFFFFU}) refused("llama.rope.dimension_count", value);
  for (const uint32_t value : {0U, 3U, 1U << 24, 0xFFFFFFFFU}) refused("llama.block_count", value);
  for (const uint32_t value : {1U, 1U << 16, 1U << 24, 0xFFFFFFFFU}) refused("llama.expert_count", value);
  for (const uint32_t value : {0U, 9U, 1U << 24}) refused("llama.expert_used_count", value);
  for (const uint32_t value : {0U, 1U, 1U << 24}) refused("llama.embedding_length", value);
  for (const uint32_t value : {0U, 3U, 1U << 24}) refused("llama.attention.head_count", value);
}

// Generates up to `tokens` more in a session that stands after a prefill.
Tokens continue_text(Session& session) {
  Tokens tokens;
  while (session.stop_reason() == StopReason::kNone) {
    const Result<Tokens> step = session.decode_step();
    EXPECT_TRUE(step.ok()) << step.status().message();
    if (!step.ok()) break;
    tokens.insert(tokens.end(), step->begin(), step->end());
  }
  return tokens;
}

// What a chat does: the text so far and something new, again and again; then a text that only begins like it.
TEST(Session, KeepsWhatANewTextHasInCommon) {
  const std::unique_ptr<Engine> fresh = open(options_for(kTarget, ""));
  const Tokens words = some_tokens(*fresh, 600);
  for (const int depth : {-2, -1, 0, 4}) {
    EngineOptions options = options_for(kTarget, depth == -2 ? "" : kDraft);
    if (depth >= 0) options.draft_depth = depth;
    options.expert_slots = 7;
    const std::unique_ptr<Engine> engine = open(options);
    Session session(*engine);
    session.set_token_limit(15);
    const auto check = [&](const Tokens& text, int64_t kept) {
      ASSERT_TRUE(session.prefill(text).ok());
      EXPECT_EQ(session.stats().prompt_tokens_kept, kept) << "depth " << depth;
      EXPECT_EQ(continue_text(session), generate(*fresh, text, 15).tokens) << "depth " << depth;
      EXPECT_EQ(session.stats().generated_tokens, 15);
    };
    Tokens text(words.begin(), words.begin() + 40);
    check(text, 0);
    for (int turn = 0; turn < 5; ++turn) {
      text.assign(session.text().begin(), session.text().end());
      const auto known = static_cast<int64_t>(text.size());
      text.insert(text.end(), words.begin() + 50 + 30 * turn, words.begin() + 60 + 30 * turn + turn);
      // The last generated token was never run.
      check(text, known - 1);
    }
    text.resize(70);
    check(text, 69);  // what it knows, word for word: only the last token is run again
    text.resize(30);
    text.insert(text.end(), words.begin() + 300, words.begin() + 333);
    check(text, 30);
    check({words.begin() + 400, words.begin() + 401}, 0);
    if (engine->target().cache != nullptr) engine->target().cache->check_invariants();
  }
}

TEST(Session, GoesOnAfterAnInterruption) {
  const std::unique_ptr<Engine> fresh = open(options_for(kTarget, ""));
  const Tokens words = some_tokens(*fresh, 900);
  for (const char* draft : {"", kDraft.c_str()}) {
    const std::unique_ptr<Engine> engine = open(options_for(kTarget, draft));
    Session session(*engine);
    session.set_token_limit(12);
    Tokens text(words.begin(), words.begin() + 50);
    ASSERT_TRUE(session.prefill(text).ok());
    ASSERT_TRUE(session.decode_step().ok());
    engine->interrupt();
    const Tokens before(session.text().begin(), session.text().end());
    EXPECT_EQ(session.decode_step().status().kind(), StatusKind::kInterrupted);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), session.text().begin(), session.text().end()));
    // A prompt that is given up leaves what it had in common.
    text = before;
    text.insert(text.end(), words.begin() + 100, words.begin() + 800);
    EXPECT_EQ(session.prefill(text).kind(), StatusKind::kInterrupted);
    engine->clear_interrupt();
    text.resize(before.size() + 20);
    ASSERT_TRUE(session.prefill(text).ok());
    EXPECT_EQ(session.stats().prompt_tokens_kept, static_cast<int64_t>(before.size()) - 1);
    EXPECT_EQ(continue_text(session), generate(*fresh, text, 12).tokens);
  }
}

TEST(Session, LoadingCanBeInterrupted) {
  std::atomic<bool> interrupt = true;
  EngineOptions options = options_for(kTarget, kDraft);
  options.interrupt = &interrupt;
  EXPECT_EQ(Engine::open(options, {}).status().kind(), StatusKind::kInterrupted);
  for (const std::string_view at : {"loading the draft", "loading the target"}) {
    interrupt = false;
    const auto stop = [&](std::string_view phase, double) { interrupt = phase == at; };
    EXPECT_EQ(Engine::open(options, stop).status().kind(), StatusKind::kInterrupted) << at;
  }
  interrupt = false;
  EXPECT_TRUE(Engine::open(options, {}).ok());
}

TEST(Session, NoTokensMeansNone) {
  const std::unique_ptr<Engine> engine = open(options_for(kTarget, ""));
  Session session(*engine);
  session.set_token_limit(0);
  ASSERT_TRUE(session.prefill(some_tokens(*engine, 10)).ok());
  EXPECT_TRUE(continue_text(session).empty());
  EXPECT_EQ(session.stop_reason(), StopReason::kTokenLimit);
  EXPECT_EQ(session.stats().steps, 0);
}

TEST(Session, SmallExpertCounts) {
  const TempDir folder;
  for (const auto& [experts, used] : {std::pair(1, 1), std::pair(3, 3), std::pair(4, 1)}) {
    const std::string path =
        write(folder, "few.gguf",
              {.n_layer = 2, .n_ff = 256, .n_expert = experts, .n_expert_used = used, .tied_head = false});
    const std::unique_ptr<Engine> plain = open(options_for(path, ""));
    const std::unique_ptr<Engine> drafted = open(options_for(path, path));
    const Tokens prompt = some_tokens(*plain, 30);
    EXPECT_EQ(generate(*drafted, prompt, 30).tokens, generate(*plain, prompt, 30).tokens);
  }
}

}  // namespace
}  // namespace drafthorse
