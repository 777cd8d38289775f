// A grammar as --grammar takes it, and the first tokens of a text that follows it.
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "base/check.h"
#include "fuzz/memory_file.h"
#include "fuzz/small_models.h"
#include "fuzz/target.h"
#include "io/gguf_index.h"
#include "model/grammar.h"
#include "model/tokenizer.h"

namespace drafthorse::fuzz {
namespace {

// Ambiguous grammars multiply the work with each character: libllama follows every reading of the text. After a step
// that takes as long the next may take thousands of times as long, and nobody can interrupt it.
constexpr size_t kMostTokens = 4;
constexpr std::chrono::milliseconds kSlowStep{3};

std::unique_ptr<Tokenizer> tokenizer() {
  const Bytes bytes = small_model({});
  const MemoryFile file;
  file.write(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 64 << 20);
  return Tokenizer::load(*GgufIndex::open(file.path())).value();
}

// Tokens of one character at most: longer ones are many steps in one.
std::vector<int32_t> short_tokens(const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens;
  for (int32_t token = 0; token < tokenizer.n_tokens(); ++token) {
    if (tokenizer.piece(token).size() <= 1) tokens.push_back(token);
  }
  return tokens;
}

void follow(Grammar& grammar, const std::vector<int32_t>& all, size_t choice) {
  using Clock = std::chrono::steady_clock;
  std::vector<int32_t> text;
  std::vector<uint8_t> allowed;
  Clock::time_point before = Clock::now() - kSlowStep / 2;
  while (text.size() < kMostTokens) {
    if (Clock::now() - std::exchange(before, Clock::now()) > kSlowStep) break;
    grammar.allowed(all, allowed);
    std::vector<int32_t> may;
    for (size_t i = 0; i < all.size(); ++i) {
      if (allowed[i] != 0) may.push_back(all[i]);
    }
    if (may.empty()) break;
    text.push_back(may[choice++ * 31 % may.size()]);
    grammar.move_to(text);
  }
  // Taken back as after a rejected draft, the state is the same.
  if (text.empty()) return;
  const int32_t last = text.back();
  text.pop_back();
  grammar.move_to(text);
  CHECK(grammar.allowed(last));
}

}  // namespace
}  // namespace drafthorse::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  static const std::unique_ptr<Tokenizer> kTokenizer = fuzz::tokenizer();
  const int32_t n_vocab = kTokenizer->n_tokens();
  const Result<std::unique_ptr<Grammar>> grammar =
      Grammar::parse(kTokenizer->vocabulary(), n_vocab, fuzz::text_of(data, size));
  static const std::vector<int32_t> kShort = fuzz::short_tokens(*kTokenizer);
  if (grammar.ok()) fuzz::follow(**grammar, kShort, size);
  return 0;
}
