// Generating through the engine as an application does, for end-to-end tests.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/session.h"

namespace drafthorse {

inline std::vector<std::string> read_prompts(size_t count) {
  std::ifstream file(DRAFTHORSE_MODELS_DIR "/prompts.jsonl");
  std::vector<std::string> prompts;
  std::string line;
  while (prompts.size() < count && std::getline(file, line)) {
    prompts.push_back(nlohmann::json::parse(line).at("text").get<std::string>());
  }
  return prompts;
}

struct Generated {
  Status status;
  std::vector<int32_t> tokens;
  SessionStats stats;
};

// One prompt through a fresh session of an engine that may have served others before.
inline Generated generate(Engine& engine, std::span<const int32_t> prompt, int64_t tokens) {
  Generated result;
  Session session(engine);
  session.set_token_limit(tokens);
  result.status = session.prefill(prompt);
  while (result.status.ok() && session.stop_reason() == StopReason::kNone) {
    Result<std::vector<int32_t>> step = session.decode_step();
    if (!step.ok()) {
      result.status = step.status();
      break;
    }
    result.tokens.insert(result.tokens.end(), step->begin(), step->end());
  }
  result.stats = session.stats();
  return result;
}

using Texts = std::vector<std::vector<int32_t>>;

// The first prompts' texts by one engine, whose books are looked through after each.
inline Texts texts_by(const EngineOptions& options, size_t prompts, int64_t tokens) {
  Texts texts;
  Result<std::unique_ptr<Engine>> engine = Engine::open(options, {});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  if (!engine.ok()) return texts;
  for (const std::string& prompt : read_prompts(prompts)) {
    Generated result = generate(**engine, (*engine)->tokenizer().tokenize(prompt), tokens);
    EXPECT_TRUE(result.status.ok()) << result.status.message();
    texts.push_back(std::move(result.tokens));
    const LoadedModel& target = (*engine)->target();
    if (target.cache != nullptr) target.cache->check_invariants();
    if (target.device_experts != nullptr) target.device_experts->slots().check_invariants();
  }
  return texts;
}

}  // namespace drafthorse
