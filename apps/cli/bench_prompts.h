// What the contenders of a bench write on from.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace drafthorse::cli {

struct BenchPrompt {
  std::string id;
  std::string text;
};

// A few of our own: code and prose, for models that were trained on anything at all.
std::vector<BenchPrompt> own_prompts();

// JSON lines, objects with a "text" and, if they like, an "id" (else the line's number). kFile, naming the line, where
// one is none; `name` is the file's.
Result<std::vector<BenchPrompt>> parse_prompts(const std::string& text, const std::string& name);

// `count` of them, spread evenly; all where there are fewer.
std::vector<BenchPrompt> spread_out(const std::vector<BenchPrompt>& prompts, size_t count);

}  // namespace drafthorse::cli
