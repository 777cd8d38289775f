// A chat: who said what, and the tokens that makes of it.
//
// The text the model reads comes from a chat template (the model's own, one of libllama's by name, or a plain one of
// ours) applied to all messages. From turn to turn only what is new is tokenised and appended to the tokens the session
// already holds, so that the answer's own tokens stay and nothing is run twice. (Spaces around an answer stay too,
// where a template would strip them from history.) Where history cannot be continued like that, all of it is tokenised
// anew and the session keeps what is still the same (Session::prefill).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace drafthorse {

// The tokens of a whole chat, ready for the assistant's next message: the template applied to all of it, tokenised as a
// whole, as models are used to. But where a message spells control tokens each is tokenised by itself, as plain text.
// Empty where the template cannot write such a chat.
std::vector<int32_t> tokenize_messages(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                       std::span<const ChatMessage> messages);

class Conversation {
 public:
  // `tokenizer` must outlive it. `system` may be empty.
  Conversation(const Tokenizer& tokenizer, ChatTemplate chat_template, std::string system);

  // Adds a message of the user's and returns the tokens to prefill for an answer. `known`: the session's text, which
  // may be anything; what it has of this conversation is used.
  std::vector<int32_t> ask(std::string question, std::span<const int32_t> known);
  // The answer to the last question, of so many tokens in the session's text. whole: those are the tokens of exactly
  // this answer.
  void answer(std::string text, bool whole, size_t tokens);
  // As if the last question had not been asked.
  void withdraw();
  // Everything but the system message is forgotten.
  void clear();

  std::span<const ChatMessage> messages() const { return messages_; }
  // Replaces all, the system message included. kFile unless questions and answers alternate, ending with an answer.
  Status set_messages(std::vector<ChatMessage> messages);
  std::vector<std::string> stop_texts() const { return template_.stop_texts(); }

 private:
  const Tokenizer& tokenizer_;
  ChatTemplate template_;
  std::vector<ChatMessage> messages_;
  // What the session has read and written, where that can be continued.
  struct Known {
    std::string prompt;  // up to the last answer, as rendered; empty: nothing is known
    std::string answer;
    size_t tokens = 0;  // of both
  };
  bool continue_from(const Known& known, const std::string& rendered, std::vector<int32_t>& tokens) const;

  Known known_;
  Known before_;  // before the last question
};

}  // namespace drafthorse
