// How a chat is written down for a model: who speaks, where a turn begins and ends.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace drafthorse {

struct ChatMessage {
  std::string role;  // system, user or assistant
  std::string text;
};

class ChatTemplate {
 public:
  static constexpr const char* kPlain = "plain";

  // "User: ...", "Assistant: ...": for models that have no template.
  ChatTemplate() = default;
  // `text` is a name (one of names()) or a template in Jinja. libllama does not interpret Jinja, it recognises the
  // templates it knows. kUsage where it does not.
  static Result<ChatTemplate> create(const std::string& text);
  // What can be given by name.
  static std::vector<std::string> names();

  bool plain() const { return text_.empty(); }
  // All messages; then, ready for the assistant's next one.
  std::string render(std::span<const ChatMessage> messages) const;
  // At which an answer ends where the model does not end it itself.
  std::vector<std::string> stop_texts() const;

 private:
  std::string text_;  // empty: plain
};

}  // namespace drafthorse
