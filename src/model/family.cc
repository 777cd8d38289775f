#include "model/family.h"

namespace drafthorse {
namespace {

struct Entry {
  const char* architecture;
  const Family* family;
};

constexpr Entry kFamilies[] = {
    {"llama", &kLlamaFamily},       {"qwen2", &kQwen2Family},         {"qwen2moe", &kQwen2Family},
    {"qwen3", &kQwen3Family},       {"qwen3moe", &kQwen3Family},      {"phimoe", &kPhiMoeFamily},
    {"deepseek", &kDeepseekFamily}, {"deepseek2", &kDeepseek2Family},
};

}  // namespace

const Family* find_family(const std::string& architecture) {
  for (const Entry& entry : kFamilies) {
    if (architecture == entry.architecture) return entry.family;
  }
  return nullptr;
}

std::vector<std::string> supported_architectures() {
  std::vector<std::string> names;
  for (const Entry& entry : kFamilies) names.emplace_back(entry.architecture);
  return names;
}

}  // namespace drafthorse
