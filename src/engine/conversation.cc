#include "engine/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace drafthorse {
namespace {

constexpr const char* kUser = "user";
constexpr const char* kAssistant = "assistant";
constexpr const char* kSystem = "system";

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

bool spells_special(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.tokenize_piece(text, true) != tokenizer.tokenize_piece(text, false);
}

// Each message by itself, as plain text.
std::vector<int32_t> tokenize_apart(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                    std::span<const ChatMessage> messages) {
  std::vector<ChatMessage> marked(messages.begin(), messages.end());
  const auto mark = [](size_t i) { return fmt::format("\x02{}\x03", i); };
  for (size_t i = 0; i < marked.size(); ++i) marked[i].text = mark(i);
  const std::string rendered = chat_template.render(marked);
  std::vector<int32_t> tokens = tokenizer.tokenize("");
  const auto add = [&](std::string_view text, bool special) {
    const std::vector<int32_t> more = tokenizer.tokenize_piece(text, special);
    tokens.insert(tokens.end(), more.begin(), more.end());
  };
  size_t done = 0;
  for (size_t i = 0; i < marked.size(); ++i) {
    const size_t at = rendered.find(mark(i), done);
    if (at == std::string::npos) continue;  // a template that leaves messages out
    add(std::string_view(rendered).substr(done, at - done), true);
    add(messages[i].text, false);
    done = at + mark(i).size();
  }
  add(std::string_view(rendered).substr(done), true);
  return tokens;
}

// What people write must not turn into control tokens, which could end their turn and speak for someone else.
bool any_spells_special(const Tokenizer& tokenizer, std::span<const ChatMessage> messages) {
  return std::any_of(messages.begin(), messages.end(),
                     [&](const ChatMessage& one) { return spells_special(tokenizer, one.text); });
}

}  // namespace

std::vector<int32_t> tokenize_messages(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                       std::span<const ChatMessage> messages) {
  const std::string rendered = chat_template.render(messages);
  if (rendered.empty()) return {};
  if (any_spells_special(tokenizer, messages)) return tokenize_apart(tokenizer, chat_template, messages);
  return tokenizer.tokenize_chat(rendered);
}

Conversation::Conversation(const Tokenizer& tokenizer, ChatTemplate chat_template, std::string system)
    : tokenizer_(tokenizer), template_(std::move(chat_template)) {
  if (!system.empty()) messages_.push_back({kSystem, std::move(system)});
}

// Adds what `rendered` has beyond what is known. False where it does not begin like that.
bool Conversation::continue_from(const Known& known, const std::string& rendered, std::vector<int32_t>& tokens) const {
  if (known.prompt.empty() || known.tokens != tokens.size() || !rendered.starts_with(known.prompt)) return false;
  const std::string_view rest = std::string_view(rendered).substr(known.prompt.size());
  for (const std::string_view answer : {std::string_view(known.answer), trim(known.answer)}) {
    if (!rest.starts_with(answer)) continue;
    const std::vector<int32_t> more = tokenizer_.tokenize_piece(rest.substr(answer.size()), true);
    tokens.insert(tokens.end(), more.begin(), more.end());
    return true;
  }
  return false;
}

std::vector<int32_t> Conversation::ask(std::string question, std::span<const int32_t> known) {
  messages_.push_back({kUser, std::move(question)});
  before_ = std::exchange(known_, {});
  known_.prompt = template_.render(messages_);
  std::vector<int32_t> tokens(known.begin(), known.end());
  if (any_spells_special(tokenizer_, messages_)) {
    tokens = tokenize_apart(tokenizer_, template_, messages_);
  } else if (!continue_from(before_, known_.prompt, tokens)) {
    tokens = tokenizer_.tokenize_chat(known_.prompt);
  }
  known_.tokens = tokens.size();
  return tokens;
}

void Conversation::answer(std::string text, bool whole, size_t tokens) {
  if (whole) {
    known_.answer = text;
    known_.tokens += tokens;
  } else {
    known_ = {};
  }
  messages_.push_back({kAssistant, std::move(text)});
}

void Conversation::withdraw() {
  messages_.pop_back();
  known_ = std::exchange(before_, {});
}

void Conversation::clear() {
  const bool system = !messages_.empty() && messages_.front().role == kSystem;
  messages_.resize(system ? 1 : 0);
  known_ = {};
}

Status Conversation::set_messages(std::vector<ChatMessage> messages) {
  const size_t first = !messages.empty() && messages.front().role == kSystem ? 1 : 0;
  if ((messages.size() - first) % 2 != 0) return file_error("the last question has no answer");
  for (size_t i = first; i < messages.size(); ++i) {
    if (messages[i].role != ((i - first) % 2 == 0 ? kUser : kAssistant)) {
      return file_error(
          fmt::format("message {} should be by the {}", i + 1, (i - first) % 2 == 0 ? kUser : kAssistant));
    }
  }
  messages_ = std::move(messages);
  known_ = {};
  return {};
}

}  // namespace drafthorse
