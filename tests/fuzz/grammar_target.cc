// A grammar as --grammar takes it, and the first tokens of a text that follows it.
#include <memory>
#include <numeric>
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

// Ambiguous grammars double the work with each: libllama follows every reading of the text.
constexpr size_t kMostTokens = 4;

std::unique_ptr<Tokenizer> tokenizer() {
  const Bytes bytes = small_model({});
  const MemoryFile file;
  file.write(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 64 << 20);
  return Tokenizer::load(*GgufIndex::open(file.path())).value();
}

void follow(Grammar& grammar, int32_t n_vocab, size_t choice) {
  std::vector<int32_t> all(static_cast<size_t>(n_vocab));
  std::iota(all.begin(), all.end(), 0);
  std::vector<int32_t> text;
  std::vector<uint8_t> allowed;
  while (text.size() < kMostTokens) {
    grammar.allowed(all, allowed);
    std::vector<int32_t> may;
    for (const int32_t token : all) {
      if (allowed[token] != 0) may.push_back(token);
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
  if (grammar.ok()) fuzz::follow(**grammar, n_vocab, size);
  return 0;
}
