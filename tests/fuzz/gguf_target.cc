// A model's file, up to the point where memory is reserved for it: index, vocabulary, configuration, weights. What is
// accepted libllama must take without ending the process.
#include <string>

#include "fuzz/memory_file.h"
#include "fuzz/target.h"
#include "io/gguf_index.h"
#include "model/chat_template.h"
#include "model/config.h"
#include "model/family.h"
#include "model/tokenizer.h"
#include "model/weights.h"

namespace drafthorse::fuzz {
namespace {

constexpr size_t kFileBytes = 64 << 20;  // room for the payload, all zeros

void use_vocabulary(const GgufIndex& index) {
  if (!check_vocabulary(index).ok()) return;
  CHECK(check_same_vocabulary(index, index).ok());
  const Result<std::unique_ptr<Tokenizer>> loaded = Tokenizer::load(index);
  if (!loaded.ok()) return;
  const Tokenizer& tokenizer = **loaded;
  std::string text = "in the thing <|endoftext|> </s> ";
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  for (const std::vector<int32_t>& tokens : {tokenizer.tokenize(text), tokenizer.tokenize_chat(text)}) {
    for (const int32_t token : tokens) CHECK(token >= 0 && token < tokenizer.n_tokens());
  }
  for (int32_t token = 0; token < tokenizer.n_tokens(); ++token) {
    static_cast<void>(tokenizer.piece(token));
    static_cast<void>(tokenizer.is_end(token));
  }
  if (const std::string own = tokenizer.chat_template(); !own.empty()) static_cast<void>(ChatTemplate::create(own));
}

void declare_weights(const GgufIndex& index) {
  const Result<ModelConfig> config = read_model_config(index);
  if (!config.ok()) return;
  const Family* family = find_family(config->architecture);
  CHECK(family != nullptr);
  WeightDeclarations declarations(index);
  family->declare(declarations, *config);
  if (!declarations.finish().ok()) return;
  CHECK(declarations.layout().n_layers() == static_cast<size_t>(config->n_layer));
  for (const ExpertLayer& layer : declarations.layout().layers) {
    for (const auto& extents : layer.experts) {
      for (int i = 0; i < layer.n_extents; ++i) {
        CHECK(extents[i].bytes > 0 && extents[i].offset + extents[i].bytes <= index.files()[extents[i].file].bytes);
      }
    }
  }
}

}  // namespace
}  // namespace drafthorse::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  static const fuzz::MemoryFile file;
  file.write(data, size, fuzz::kFileBytes);
  const Result<GgufIndex> index = GgufIndex::open(file.path());
  if (!index.ok()) return 0;
  fuzz::use_vocabulary(*index);
  fuzz::declare_weights(*index);
  return 0;
}
