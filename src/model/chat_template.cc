#include "model/chat_template.h"

#include <llama.h>

#include <algorithm>

namespace drafthorse {
namespace {

// Empty where libllama does not recognise the template.
std::string apply(const std::string& text, std::span<const ChatMessage> messages) {
  std::vector<llama_chat_message> list;
  size_t bytes = 0;
  for (const ChatMessage& message : messages) {
    list.push_back({message.role.c_str(), message.text.c_str()});
    bytes += message.text.size();
  }
  std::string out(2 * bytes + 1024, '\0');
  const auto run = [&] {
    return llama_chat_apply_template(text.c_str(), list.data(), list.size(), true, out.data(),
                                     static_cast<int32_t>(out.size()));
  };
  int32_t length = run();
  if (length > static_cast<int32_t>(out.size())) {
    out.resize(static_cast<size_t>(length) + 1);
    length = run();
  }
  out.resize(static_cast<size_t>(std::max(0, length)));
  return out;
}

}  // namespace

std::vector<std::string> ChatTemplate::names() {
  std::vector<const char*> builtin(static_cast<size_t>(std::max(0, llama_chat_builtin_templates(nullptr, 0))));
  llama_chat_builtin_templates(builtin.data(), builtin.size());
  std::vector<std::string> names(builtin.begin(), builtin.end());
  names.emplace_back(kPlain);
  std::sort(names.begin(), names.end());
  return names;
}

Result<ChatTemplate> ChatTemplate::create(const std::string& text) {
  ChatTemplate result;
  if (text == kPlain) return result;
  const std::vector<ChatMessage> probe = {{"user", "x"}};
  if (text.empty() || apply(text, probe).empty()) {
    return usage_error("the chat template is none of those libllama knows; --chat-template list names them");
  }
  result.text_ = text;
  return result;
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages) const {
  if (!plain()) return apply(text_, messages);
  std::string out;
  for (const ChatMessage& message : messages) {
    if (message.role == "system") out += message.text + "\n\n";
    if (message.role == "user") out += "User: " + message.text + "\n";
    if (message.role == "assistant") out += "Assistant:" + message.text + "\n";
  }
  return out + "Assistant:";
}

std::vector<std::string> ChatTemplate::stop_texts() const {
  return plain() ? std::vector<std::string>{"\nUser:"} : std::vector<std::string>{};
}

}  // namespace drafthorse
