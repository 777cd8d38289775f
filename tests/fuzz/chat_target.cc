// A saved chat: read, continued, written down with several templates, tokenised.
#include <utility>

#include "base/check.h"
#include "cli/chat_file.h"
#include "engine/conversation.h"
#include "fuzz/memory_file.h"
#include "fuzz/small_models.h"
#include "fuzz/target.h"
#include "io/gguf_index.h"

namespace drafthorse::fuzz {
namespace {

std::unique_ptr<Tokenizer> tokenizer_of(const SmallModel& model) {
  const Bytes bytes = small_model(model);
  const MemoryFile file;
  file.write(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 64 << 20);
  return Tokenizer::load(*GgufIndex::open(file.path())).value();
}

}  // namespace
}  // namespace drafthorse::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace drafthorse;
  static const std::unique_ptr<Tokenizer> kTokenizers[] = {fuzz::tokenizer_of({}),
                                                           fuzz::tokenizer_of({.bytes_in_pairs = false})};
  Result<std::vector<ChatMessage>> messages = cli::parse_chat(fuzz::text_of(data, size), "chat.json");
  if (!messages.ok()) return 0;
  const std::string written = cli::chat_text(*messages);
  const Result<std::vector<ChatMessage>> again = cli::parse_chat(written, "chat.json");
  CHECK(again.ok() && cli::chat_text(*again) == written);
  for (const auto& tokenizer : kTokenizers) {
    for (const char* name : {"plain", "chatml", "llama2-sys"}) {
      Conversation conversation(*tokenizer, ChatTemplate::create(name).value(), "");
      if (!conversation.set_messages(*messages).ok()) return 0;
      const std::vector<int32_t> first = conversation.ask("and then?", {});
      CHECK(!first.empty());
      conversation.answer("nothing", true, 1);
      CHECK(!conversation.ask("why?", first).empty());
    }
  }
  return 0;
}
