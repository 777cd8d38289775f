#include "batch_request.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "model/grammar.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

constexpr const char* kChatUrl = "/v1/chat/completions";
constexpr const char* kCompletionUrl = "/v1/completions";

// Accounting, storage and transport: no text depends on them.
constexpr std::array kIgnoredFields = {"user",
                                       "metadata",
                                       "store",
                                       "service_tier",
                                       "safety_identifier",
                                       "stream_options",
                                       "prompt_cache_key",
                                       "prompt_cache_retention",
                                       "prediction",
                                       "parallel_tool_calls"};

// Values that JSON's text will become, from above: strings aside, each but the first comes after one of these.
size_t most_values(std::string_view line) {
  size_t count = 1;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (in_string && line[i] == '\\') {
      ++i;
    } else if (line[i] == '"') {
      in_string = !in_string;
    } else if (!in_string && (line[i] == ',' || line[i] == '[' || line[i] == '{')) {
      ++count;
    }
  }
  return count;
}

Json parse_json(std::string_view line, Verdict& verdict) {
  if (line.size() > kLongestRequestLine) {
    verdict.refuse("", fmt::format("the line is longer than {} MiB", kLongestRequestLine >> 20), "line_too_long");
  } else if (!is_utf8(line)) {
    verdict.refuse("", "the line is not valid UTF-8", "invalid_json");
  } else if (most_values(line) > kMostJsonValues) {
    verdict.refuse("", fmt::format("the line holds more than {} values", kMostJsonValues), "line_too_long");
  }
  if (!verdict.ok()) return {};
  Json json = Json::parse(line, nullptr, false);
  if (json.is_discarded()) {
    verdict.refuse("", "the line is not valid JSON", "invalid_json");
  } else if (!json.is_object()) {
    verdict.refuse("", "the line is not a JSON object", "invalid_json");
  }
  return json;
}

bool is_zero(const Json& value) { return value.is_number() && value.get<double>() == 0; }
bool is_one(const Json& value) { return value.is_number_integer() && value == 1; }
bool is_false(const Json& value) { return value.is_boolean() && !value.get<bool>(); }
bool is_empty(const Json& value) {
  return value.is_string() ? value.get_ref<const std::string&>().empty() : value.is_structured() && value.empty();
}
bool is_never(const Json&) { return false; }

// A string, or parts of type text one after the other.
std::string content_text(const Json& content, const std::string& field, Verdict& verdict) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    verdict.refuse(field, fmt::format("{} must be a string or a list of text parts, not {}", field, shown(content)));
    return "";
  }
  std::string text;
  for (size_t i = 0; i < content.size() && verdict.ok(); ++i) {
    const std::string part_field = fmt::format("{}[{}]", field, i);
    JsonFields part(content[i], part_field + ".", verdict);
    const std::string* type = content[i].is_object() ? part.text("type") : nullptr;
    if (type == nullptr || *type != "text") {
      verdict.refuse(part_field, fmt::format("{} must be of type text: this is a model of text alone", part_field),
                     "unsupported_value");
      return "";
    }
    if (part.need("text", part_field) == nullptr) return "";
    if (const std::string* more = part.text("text")) text += *more;
    part.finish();
  }
  return text;
}

ChatMessage parse_message(const Json& json, size_t number, Verdict& verdict) {
  const std::string field = fmt::format("messages[{}]", number);
  if (!json.is_object()) {
    verdict.refuse(field, fmt::format("{} must be an object, not {}", field, shown(json)));
    return {};
  }
  JsonFields message(json, field + ".", verdict);
  message.need("role", field);
  message.need("content", field);
  const std::string* role = message.text("role");
  const Json* content = message.take("content");
  if (role == nullptr || content == nullptr) return {};
  const bool known = *role == "system" || *role == "developer" || *role == "user" || *role == "assistant";
  if (!known) {
    message.refuse("role",
                   fmt::format("{}.role must be system, developer, user or assistant, not {}", field, shown(*role)));
  }
  message.only("tool_calls", "there are no tools", is_empty);
  message.only("annotations", "there is no text for them", is_empty);
  ChatMessage out{*role == "developer" ? "system" : *role, content_text(*content, field + ".content", verdict)};
  // Templates take texts that end there.
  if (out.text.find('\0') != std::string::npos) {
    message.refuse("content",
                   fmt::format("{}.content holds the character U+0000, which no chat template takes", field));
  }
  message.finish();
  return out;
}

void parse_messages(JsonFields& body, ApiRequest& request) {
  const Json* messages = body.need("messages", "the body");
  if (messages == nullptr) return;
  if (!messages->is_array() || messages->empty()) {
    return body.refuse("messages", fmt::format("messages must be a list of at least one, not {}",
                                               messages->is_array() ? "an empty one" : shown(*messages)));
  }
  for (size_t i = 0; i < messages->size() && body.verdict().ok(); ++i) {
    request.messages.push_back(parse_message((*messages)[i], i, body.verdict()));
  }
}

std::vector<int32_t> parse_tokens(JsonFields& body, const Json& list) {
  std::vector<int32_t> tokens;
  tokens.reserve(list.size());
  for (const Json& one : list) {
    if (!one.is_number_unsigned() || one.get<uint64_t>() > INT32_MAX) {
      body.refuse("prompt", fmt::format("prompt must be text, or a list of tokens' numbers; {} is none", shown(one)));
      return {};
    }
    tokens.push_back(one.get<int32_t>());
  }
  return tokens;
}

void parse_prompt(JsonFields& body, ApiRequest& request) {
  const Json* prompt = body.need("prompt", "the body");
  if (prompt == nullptr) return;
  const bool list = prompt->is_array() && !prompt->empty();
  if (list && (prompt->front().is_string() || prompt->front().is_array())) {
    if (prompt->size() > 1) {
      return body.refuse("prompt", fmt::format("prompt is a list of {}; give each a line of its own", prompt->size()),
                         "unsupported_value");
    }
    prompt = &prompt->front();
  }
  if (prompt->is_string()) {
    request.prompt = prompt->get<std::string>();
  } else if (prompt->is_array()) {
    request.prompt = parse_tokens(body, *prompt);
  } else {
    body.refuse("prompt", fmt::format("prompt must be text, or a list of tokens' numbers, not {}", shown(*prompt)));
  }
}

void parse_token_limit(JsonFields& body, ApiRequest& request) {
  const std::optional<int64_t> most = body.count("max_tokens", 1, INT32_MAX);
  const std::optional<int64_t> newer = request.chat ? body.count("max_completion_tokens", 1, INT32_MAX) : most;
  if (most && newer && most != newer) {
    body.refuse("max_completion_tokens", "max_tokens and max_completion_tokens differ; give one of them");
  }
  if (const std::optional<int64_t>& limit = newer ? newer : most) request.token_limit = *limit;
}

void parse_stops(JsonFields& body, ApiRequest& request) {
  const Json* stop = body.take("stop");
  if (stop == nullptr) return;
  request.stops.clear();
  const auto add = [&](const Json& one) {
    if (one.is_string() && !is_empty(one)) {
      request.stops.push_back(one.get<std::string>());
    } else {
      body.refuse("stop",
                  fmt::format("stop must be text, or a list of texts, none of them empty; {} is none", shown(one)));
    }
  };
  if (!stop->is_array()) return add(*stop);
  for (const Json& one : *stop) add(one);
}

void parse_response_format(JsonFields& body, ApiRequest& request) {
  const Json* format = body.take("response_format");
  if (format == nullptr) return;
  const Json type = format->is_object() ? format->value("type", Json()) : Json();
  if (type == "text") {
    request.sampling.grammar.clear();
  } else if (type == "json_object") {
    request.sampling.grammar = json_grammar();
  } else {
    body.refuse("response_format",
                type == "json_schema"
                    ? "response_format json_schema is not supported; --grammar takes a grammar for all requests"
                    : R"(response_format must be {"type": "text"} or {"type": "json_object"})",
                "unsupported_value");
  }
}

void parse_seed(JsonFields& body, ApiRequest& request) {
  const Json* seed = body.take("seed");
  if (seed == nullptr) return;
  if (!seed->is_number_integer()) {
    return body.refuse("seed", fmt::format("seed must be a whole number of 64 bits, not {}", shown(*seed)));
  }
  // OpenAI's are signed; as many bits of another meaning.
  request.sampling.seed =
      seed->is_number_unsigned() ? seed->get<uint64_t>() : static_cast<uint64_t>(seed->get<int64_t>());
}

void parse_sampling(JsonFields& body, ApiRequest& request) {
  SamplingOptions& o = request.sampling;
  if (const auto value = body.number("temperature", 0, 100)) o.temperature = *value;
  if (const auto value = body.number("top_p", 0, 1)) o.top_p = *value;
  if (const auto value = body.number("min_p", 0, 1)) o.min_p = *value;
  if (const auto value = body.count("top_k", 0, INT32_MAX)) o.top_k = static_cast<int32_t>(*value);
  if (const auto value = body.number("repeat_penalty", 0, 100)) o.repeat_penalty = *value;
  if (const auto value = body.count("repeat_last_n", 0, INT32_MAX)) o.repeat_last_n = static_cast<int32_t>(*value);
  if (const auto value = body.flag("ignore_eos")) o.ignore_end = *value;
  parse_response_format(body, request);
  parse_seed(body, request);
  const Status checked = check_sampling(o);
  if (!checked.ok()) body.verdict().refuse("", checked.message());
}

void refuse_unsupported(JsonFields& body, const ApiRequest& request) {
  body.only("n", "a line has one answer; write the request several times, with seeds", is_one);
  body.only("stream", "results are written when they are finished", is_false);
  body.only("presence_penalty", "use repeat_penalty, or 0", is_zero);
  body.only("frequency_penalty", "use repeat_penalty, or 0", is_zero);
  body.only("logit_bias", "logits are the model's own", is_empty);
  body.only("logprobs", "probabilities are not reported", is_false);
  if (!request.chat) {
    body.only("echo", "the prompt is not repeated", is_false);
    body.only("best_of", "a line has one answer", is_one);
    body.only("suffix", "text is only continued", is_empty);
    return;
  }
  const auto no_call = [](const Json& value) { return value == "none" || value == "auto"; };
  const auto text_alone = [](const Json& value) { return value == Json::array({"text"}); };
  body.only("top_logprobs", "probabilities are not reported", is_zero);
  body.only("tools", "there are no tools", is_empty);
  body.only("functions", "there are no tools", is_empty);
  body.only("tool_choice", "there are no tools", no_call);
  body.only("function_call", "there are no tools", no_call);
  body.only("modalities", "this is a model of text alone", text_alone);
  body.only("audio", "this is a model of text alone", is_empty);
  body.only("reasoning_effort", "the model decides how much it writes", is_never);
  body.only("verbosity", "the model decides how much it writes", is_never);
  body.only("web_search_options", "there is no search", is_never);
}

void parse_body(const Json& json, ApiRequest& request, Verdict& verdict) {
  JsonFields body(json, "", verdict);
  body.text("model");  // there is one, which writes all of them
  if (request.chat) {
    parse_messages(body, request);
  } else {
    parse_prompt(body, request);
  }
  parse_token_limit(body, request);
  parse_stops(body, request);
  parse_sampling(body, request);
  refuse_unsupported(body, request);
  for (const char* key : kIgnoredFields) body.ignore(key);
  body.finish();
}

void parse_request(const Json& json, ApiRequest& request, Verdict& verdict) {
  JsonFields line(json, "", verdict);
  line.ignore("custom_id");
  const std::string* method = line.text("method");
  if (method != nullptr && *method != "POST") {
    line.refuse("method", fmt::format("method must be POST, not {}", shown(*method)));
  }
  line.need("url", "the line");
  const std::string* url = line.text("url");
  if (url == nullptr) return;
  if (*url != kChatUrl && *url != kCompletionUrl) {
    line.refuse("url", fmt::format("url must be {} or {}, not {}", kChatUrl, kCompletionUrl, shown(*url)));
  }
  request.chat = *url == kChatUrl;
  const Json* body = line.need("body", "the line");
  if (body == nullptr) return;
  if (!body->is_object()) return line.refuse("body", fmt::format("body must be an object, not {}", shown(*body)));
  line.finish();
  parse_body(*body, request, verdict);
}

}  // namespace

RequestLine parse_request_line(std::string_view line, const RequestDefaults& defaults) {
  RequestLine out;
  Verdict verdict;
  const Json json = parse_json(line, verdict);
  if (verdict.ok()) {
    const auto id = json.find("custom_id");
    if (id != json.end() && id->is_string()) out.custom_id = id->get<std::string>();
    if (out.custom_id.empty()) {
      verdict.refuse("custom_id", "custom_id must be there, a string that is not empty", "missing_field");
    }
  }
  ApiRequest request;
  request.sampling = defaults.sampling;
  request.sampling.seed = defaults.seed ? *defaults.seed : own_seed(out.custom_id);
  request.token_limit = defaults.token_limit;
  request.stops = defaults.stops;
  if (verdict.ok()) parse_request(json, request, verdict);
  if (verdict.ok()) {
    out.request = std::move(request);
  } else {
    out.error = *verdict.error();
  }
  return out;
}

// FNV-1a, folded.
uint64_t own_seed(std::string_view custom_id) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : custom_id) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3ULL;
  return (hash ^ hash >> 32) & 0xffffffff;
}

}  // namespace drafthorse::cli
