#include "batch_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/conversation.h"

namespace drafthorse::cli {
namespace {

constexpr size_t kSampled = 128;  // requests

std::vector<int32_t> chat_tokens(const ApiRequest& request, const Tokenizer& tokenizer,
                                 const ChatTemplate& chat_template, const std::string& system, Verdict& verdict) {
  std::vector<ChatMessage> messages = request.messages;
  const bool has_system = std::any_of(messages.begin(), messages.end(),
                                      [](const ChatMessage& message) { return message.role == "system"; });
  if (!system.empty() && !has_system) messages.insert(messages.begin(), {"system", system});
  std::vector<int32_t> tokens = tokenize_messages(tokenizer, chat_template, messages);
  if (tokens.empty()) verdict.refuse("messages", "the chat template makes nothing of these messages");
  return tokens;
}

std::vector<int32_t> prompt_tokens(const ApiRequest& request, const Tokenizer& tokenizer, Verdict& verdict) {
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    std::vector<int32_t> tokens = tokenizer.tokenize(*text);
    if (tokens.empty()) verdict.refuse("prompt", "the prompt is empty");
    return tokens;
  }
  const auto& tokens = std::get<std::vector<int32_t>>(request.prompt);
  if (tokens.empty()) verdict.refuse("prompt", "the prompt is empty");
  for (const int32_t token : tokens) {
    if (token >= tokenizer.n_tokens()) {
      verdict.refuse("prompt",
                     fmt::format("prompt holds token {}, and the model has {} of them", token, tokenizer.n_tokens()));
    }
  }
  return tokens;
}

}  // namespace

RequestMaker request_maker(const Engine& engine, ChatTemplate chat_template, std::string system) {
  return [&engine, chat_template = std::move(chat_template), system = std::move(system)](const ApiRequest& request,
                                                                                         Verdict& verdict) {
    BatchRequest made;
    const Tokenizer& tokenizer = engine.tokenizer();
    made.prompt = request.chat ? chat_tokens(request, tokenizer, chat_template, system, verdict)
                               : prompt_tokens(request, tokenizer, verdict);
    if (static_cast<int64_t>(made.prompt.size()) >= engine.context()) {
      verdict.refuse(
          request.chat ? "messages" : "prompt",
          fmt::format("the prompt has {} tokens, and the context of {} must hold an answer too; --ctx sets it",
                      made.prompt.size(), engine.context()),
          "context_length_exceeded");
    }
    made.sampling = request.sampling;
    made.token_limit = request.token_limit;
    made.stop_texts = request.stops;
    if (request.chat) {
      for (const std::string& stop : chat_template.stop_texts()) made.stop_texts.push_back(stop);
    }
    return made;
  };
}

JobSize measure_job(const BatchInput& input, const ResultsFile& results, const RequestMaker& maker, int32_t context) {
  std::vector<size_t> pending;
  for (size_t i = 0; i < input.lines().size(); ++i) {
    if (input.lines()[i].valid && !results.has(i)) pending.push_back(i);
  }
  JobSize size;
  size.requests = static_cast<int64_t>(pending.size());
  int64_t tokens = 0;
  int64_t prompts = 0;
  int64_t sampled = 0;
  const size_t count = std::min(pending.size(), kSampled);
  for (size_t i = 0; i < count; ++i) {  // spread evenly
    const Result<RequestLine> line = input.read(pending[i * pending.size() / count]);
    Verdict verdict;
    if (!line.ok() || !line->request) continue;
    const BatchRequest request = maker(*line->request, verdict);
    if (!verdict.ok()) continue;
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t room = context - prompt;
    prompts += prompt;
    tokens += prompt + (request.token_limit >= 0 ? std::min(request.token_limit, room) : room);
    ++sampled;
    if (!size.sampling) size.sampling = request.sampling;
  }
  if (sampled > 0) {
    size.typical_tokens = static_cast<int32_t>((tokens + sampled - 1) / sampled);
    size.typical_prompt_tokens = static_cast<int32_t>(prompts / sampled);
  }
  return size;
}

}  // namespace drafthorse::cli
