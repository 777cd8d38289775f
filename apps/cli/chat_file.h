// A chat as /save writes it and /load reads it. Pure: text in, text out.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/chat_template.h"

namespace drafthorse::cli {

// JSON, valid whatever bytes the messages hold: an answer that was stopped may end inside a character.
std::string chat_text(std::span<const ChatMessage> messages);

// kFile where `text` (read from `name`) is nothing that chat_text() would have written.
Result<std::vector<ChatMessage>> parse_chat(const std::string& text, const std::string& name);

}  // namespace drafthorse::cli
