#include "chat_file.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

std::string chat_text(std::span<const ChatMessage> messages) {
  Json list = Json::array();
  for (const ChatMessage& message : messages) list.push_back({{"role", message.role}, {"text", message.text}});
  return Json{{"drafthorse_chat", 1}, {"messages", list}}.dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

Result<std::vector<ChatMessage>> parse_chat(const std::string& text, const std::string& name) {
  const Json json = Json::parse(text, nullptr, false);
  const Status refused = file_error(fmt::format("{}: not a chat that /save wrote", name));
  if (!json.is_object() || !json.contains("drafthorse_chat") || !json.contains("messages")) return refused;
  if (json["drafthorse_chat"] != 1 || !json["messages"].is_array()) return refused;
  std::vector<ChatMessage> messages;
  for (const Json& one : json["messages"]) {
    if (!one.is_object() || !one.contains("role") || !one.contains("text")) return refused;
    if (!one["role"].is_string() || !one["text"].is_string()) return refused;
    messages.push_back({one["role"].get<std::string>(), one["text"].get<std::string>()});
  }
  return messages;
}

}  // namespace drafthorse::cli
