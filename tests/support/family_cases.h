// A tiny model of every family and way of configuring it, for the tests that hold for all of them.
#pragma once

#include <gtest/gtest.h>

#include <cctype>
#include <ostream>
#include <string>
#include <vector>

#include "support/tiny_model.h"

namespace drafthorse {

struct FamilyCase {
  std::string name;
  TinyModelOptions options;
  bool libllama_agrees = true;  // where it computes the same

  friend std::ostream& operator<<(std::ostream& out, const FamilyCase& one) { return out << one.name; }
};

// For INSTANTIATE_TEST_SUITE_P.
inline std::string family_case_name(const testing::TestParamInfo<FamilyCase>& one) {
  std::string name;
  for (const char c : one.param.name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) name += c;
  }
  return name;
}

inline std::vector<FamilyCase> family_cases() {
  std::vector<FamilyCase> cases;
  const auto add = [&](const std::string& name, TinyModelOptions options) {
    options.tied_head = false;
    cases.push_back({name, std::move(options), true});
  };
  add("qwen3", {.architecture = "qwen3", .n_layer = 2, .n_ff = 320, .n_expert = 0, .seed = 11});
  add("qwen3, tied, odd heads", {.architecture = "qwen3",
                                 .n_layer = 3,
                                 .n_embd = 192,
                                 .n_head = 6,
                                 .n_head_kv = 3,
                                 .head_dim = 40,
                                 .n_ff = 272,
                                 .n_expert = 0,
                                 .seed = 12});
  cases.back().options.tied_head = true;
  add("qwen3moe", {.architecture = "qwen3moe",
                   .n_layer = 3,
                   .n_head = 8,
                   .n_head_kv = 2,
                   .n_ff = 512,
                   .n_expert = 16,
                   .n_expert_used = 4,
                   .n_ff_expert = 128,
                   .seed = 13});
  add("qwen3moe, yarn", {.architecture = "qwen3moe",
                         .n_layer = 2,
                         .n_head = 4,
                         .n_head_kv = 4,
                         .head_dim = 32,
                         .n_ff = 256,
                         .n_expert = 5,
                         .n_expert_used = 3,
                         .n_ff_expert = 96,
                         .rope = {.type = "yarn", .factor = 4, .original_context = 64},
                         .seed = 14});
  add("qwen2", {.architecture = "qwen2",
                .n_layer = 2,
                .n_head = 8,
                .n_head_kv = 1,
                .head_dim = 32,
                .n_ff = 288,
                .n_expert = 0,
                .seed = 21});
  add("qwen2moe", {.architecture = "qwen2moe",
                   .n_layer = 3,
                   .n_head = 4,
                   .n_head_kv = 4,
                   .n_ff = 512,
                   .n_expert = 12,
                   .n_expert_used = 4,
                   .n_ff_expert = 96,
                   .n_ff_shared = 320,
                   .seed = 22});
  add("qwen2moe, one expert used", {.architecture = "qwen2moe",
                                    .n_layer = 2,
                                    .n_embd = 128,
                                    .n_head = 4,
                                    .n_head_kv = 2,
                                    .head_dim = 32,
                                    .n_ff = 256,
                                    .n_expert = 3,
                                    .n_expert_used = 1,
                                    .n_ff_expert = 64,
                                    .n_ff_shared = 64,
                                    .seed = 23});
  add("phimoe, short factors", {.architecture = "phimoe",
                                .n_layer = 3,
                                .n_head = 4,
                                .n_head_kv = 2,
                                .n_ff = 192,
                                .n_expert = 8,
                                .n_expert_used = 2,
                                .rope = {.original_context = 1024, .attn_factor = 1.19F, .factors = true},
                                .seed = 31});
  add("phimoe, long factors", {.architecture = "phimoe",
                               .n_layer = 2,
                               .n_head = 8,
                               .n_head_kv = 2,
                               .head_dim = 32,
                               .n_ff = 160,
                               .n_expert = 6,
                               .n_expert_used = 2,
                               .window = 4096,
                               .rope = {.original_context = 128, .attn_factor = 1.19F, .factors = true},
                               .seed = 32});
  add("phimoe, narrow window", {.architecture = "phimoe",
                                .n_layer = 2,
                                .n_head = 4,
                                .n_head_kv = 1,
                                .n_ff = 128,
                                .n_expert = 4,
                                .n_expert_used = 2,
                                .window = 24,
                                .seed = 33});
  cases.back().libllama_agrees = false;  // it sees everything
  add("deepseek", {.architecture = "deepseek",
                   .n_layer = 3,
                   .n_head = 4,
                   .n_head_kv = 4,
                   .n_ff = 320,
                   .n_expert = 16,
                   .n_expert_used = 6,
                   .n_ff_expert = 64,
                   .n_ff_shared = 128,
                   .n_dense_lead = 1,
                   .seed = 41});
  // As DeepSeek-V2-Lite.
  const TinyModelOptions lite = {
      .architecture = "deepseek2",
      .n_layer = 3,
      .n_head = 4,
      .n_ff = 320,
      .n_expert = 16,
      .n_expert_used = 6,
      .n_ff_expert = 64,
      .n_ff_shared = 128,
      .n_dense_lead = 1,
      .latent = {.kv_rank = 128, .nope_dim = 64, .rope_dim = 32, .value_dim = 64},
      .rope = {.type = "yarn", .factor = 40, .original_context = 64, .yarn_log_multiplier = 0.0707F},
      .seed = 42};
  add("deepseek2, lite", lite);
  TinyModelOptions old_file = lite;
  old_file.latent.split_kv_b = false;
  add("deepseek2, lite, kv_b in one", old_file);
  // As DeepSeek-V3.
  add("deepseek2, groups and bias",
      {.architecture = "deepseek2",
       .n_layer = 3,
       .n_head = 8,
       .n_ff = 256,
       .n_expert = 32,
       .n_expert_used = 4,
       .n_ff_expert = 64,
       .n_ff_shared = 64,
       .n_dense_lead = 1,
       .latent = {.q_rank = 96, .kv_rank = 64, .nope_dim = 32, .rope_dim = 16, .value_dim = 40},
       .routing = {.gating = 2, .normalised = true, .scale = 2.5F, .n_group = 8, .n_group_used = 3, .bias = true},
       .rope = {.type = "yarn", .factor = 16, .original_context = 128, .yarn_log_multiplier = 0.1F},
       .seed = 43});
  add("deepseek2, scaled, no scaling of rotations",
      {.architecture = "deepseek2",
       .n_layer = 2,
       .n_head = 3,
       .n_ff = 192,
       .n_expert = 8,
       .n_expert_used = 3,
       .n_ff_expert = 96,
       .n_ff_shared = 96,
       .latent = {.q_rank = 64, .kv_rank = 96, .nope_dim = 48, .rope_dim = 8, .value_dim = 24, .split_kv_b = false},
       .routing = {.gating = 1, .scale = 16, .n_group = 4, .n_group_used = 2},
       .seed = 44});
  add("deepseek2, dense", {.architecture = "deepseek2",
                           .n_layer = 2,
                           .n_head = 4,
                           .n_ff = 256,
                           .n_expert = 0,
                           .latent = {.q_rank = 64, .kv_rank = 64, .nope_dim = 32, .rope_dim = 16, .value_dim = 32},
                           .rope = {.type = "yarn", .factor = 4, .original_context = 128},
                           .seed = 45});
  add("llama, yarn", {.n_layer = 2,
                      .n_ff = 256,
                      .n_expert = 4,
                      .rope = {.type = "yarn", .factor = 8, .original_context = 64},
                      .seed = 51});
  add("llama, longrope", {.n_layer = 2,
                          .n_ff = 256,
                          .n_expert = 0,
                          .rope = {.type = "longrope", .original_context = 128, .attn_factor = 1.1F, .factors = true},
                          .seed = 52});
  return cases;
}

}  // namespace drafthorse
