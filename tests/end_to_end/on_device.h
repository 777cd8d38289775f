// A fixture of engines on a device: ggml's RPC backend over the CPU, whose memory the host cannot touch, in a process
// of its own.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "end_to_end/generation.h"
#include "engine/engine.h"
#include "support/device_server_process.h"

namespace drafthorse {

inline constexpr size_t kPrompts = 4;
inline constexpr int64_t kTokens = 48;

class OnDevice : public testing::Test {
 protected:
  inline static const std::string kTarget = DRAFTHORSE_FLOAT_TARGET;
  inline static const std::string kDenseDraft = DRAFTHORSE_MODELS_DIR "/mixtral/draft.gguf";
  inline static const std::string kQuantizedDraft = DRAFTHORSE_QUANTIZED_DRAFT;

  static void SetUpTestSuite() {
    if (server_ == nullptr) server_ = new DeviceServerProcess;
  }

  static EngineOptions options(const std::string& placement = "fixed") {
    EngineOptions options;
    options.target_path = kTarget;
    options.context = 256;
    options.ram_bytes = uint64_t{1} << 30;
    options.threads = 1;
    options.drafter = "none";
    options.device.servers = {server_->endpoint()};
    options.device.name = server_->device();
    options.device.placement = placement;
    return options;
  }
  static EngineOptions drafting(const std::string& drafter, int depth, const std::string& placement = "fixed") {
    EngineOptions result = options(placement);
    result.drafter = drafter;
    if (drafter == "model" || drafter == "auto") result.draft_path = kDenseDraft;
    if (drafter == "shared-kv") result.draft_path = kQuantizedDraft;
    if (depth >= 0) result.draft_depth = depth;
    return result;
  }

  static Texts texts_of(const EngineOptions& options) { return texts_by(options, kPrompts, kTokens); }

  static const Texts& reference() {
    static const Texts texts = texts_of(options());
    return texts;
  }
  static void expect_same(const EngineOptions& options, const std::string& what) {
    const Texts texts = texts_of(options);
    ASSERT_EQ(texts.size(), kPrompts) << what;
    for (size_t i = 0; i < texts.size(); ++i) ASSERT_EQ(texts[i], reference()[i]) << what << ", prompt " << i;
  }

  // The logits after `tokens`, computed as a session would: the prompt at once, then tokens singly, the last `window`
  // of them (at least one) as a draft's verification.
  static std::vector<float> last_logits(const EngineOptions& options, std::span<const int32_t> tokens, size_t prompt,
                                        size_t window) {
    Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
    EXPECT_TRUE(engine.ok());
    if (!engine.ok()) return {};
    ForwardPass& pass = *(*engine)->target().pass;
    const auto run = [&](size_t from, size_t count) { EXPECT_TRUE(pass.run(tokens.subspan(from, count), 1).ok()); };
    const size_t last = tokens.size() - window;
    if (std::min(prompt, last) > 0) run(0, std::min(prompt, last));
    for (size_t i = prompt; i < last; ++i) run(i, 1);
    run(last, window);
    const std::span<const float> row = pass.logits(0);
    return {row.begin(), row.end()};
  }

  // How many texts differ, each at a token where the two engines' logits leave no margin beyond what they differ by: in
  // whichever window they differ most, since one window may turn a near tie of a router that others do not.
  static int divergences(const EngineOptions& a, const EngineOptions& b) {
    const Texts of_a = texts_of(a);
    const Texts of_b = texts_of(b);
    EXPECT_EQ(of_a.size(), of_b.size());
    const std::vector<std::string> prompts = read_prompts(kPrompts);
    int count = 0;
    for (size_t i = 0; i < std::min(of_a.size(), of_b.size()); ++i) {
      if (of_a[i] == of_b[i]) continue;
      ++count;
      const auto differs = std::mismatch(of_a[i].begin(), of_a[i].end(), of_b[i].begin(), of_b[i].end());
      const auto at = differs.first - of_a[i].begin();
      EXPECT_TRUE(differs.first != of_a[i].end() && differs.second != of_b[i].end()) << "prompt " << i;
      if (differs.first == of_a[i].end() || differs.second == of_b[i].end()) continue;
      Result<std::unique_ptr<Engine>> engine = Engine::open(a, {});
      EXPECT_TRUE(engine.ok());
      std::vector<int32_t> tokens = (*engine)->tokenizer().tokenize(prompts[i]);
      engine->reset();
      const size_t prompt = tokens.size() - 1;
      tokens.insert(tokens.end(), of_a[i].begin(), of_a[i].begin() + at);
      const std::vector<float> expected = last_logits(a, tokens, prompt, 1);
      double error = 0;
      for (size_t window = 1; window <= static_cast<size_t>(b.draft_depth.value_or(0)) + 1; ++window) {
        if (window + prompt > tokens.size()) break;
        const std::vector<float> got = last_logits(b, tokens, prompt, window);
        double sum = 0;
        for (size_t v = 0; v < got.size(); ++v) sum += std::pow(double{got[v]} - double{expected[v]}, 2);
        error = std::max(error, std::sqrt(sum / static_cast<double>(got.size())));
      }
      const double margin = std::abs(double{expected[*differs.first]} - double{expected[*differs.second]});
      EXPECT_LE(margin, 5.5 * error) << "prompt " << i << ", token " << at;
    }
    return count;
  }

  inline static DeviceServerProcess* server_ = nullptr;  // until the process ends: ggml keeps the connection
};

}  // namespace drafthorse
