#include "batch_request.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "testing/batch_files.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

std::string chat(const std::string& messages, const std::string& more = "") {
  return R"({"custom_id":"c","method":"POST","url":"/v1/chat/completions","body":{"messages":)" + messages +
         (more.empty() ? "" : "," + more) + "}}";
}

RequestLine parse(const std::string& line, const RequestDefaults& defaults = {}) {
  return parse_request_line(line, defaults);
}

// The error of a completion with this in its body.
RequestError error_of(const std::string& more) { return parse(completion("a", more)).error; }

TEST(RequestLine, Completion) {
  const RequestLine line = parse(completion(
      "a", R"("max_tokens":7,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"repeat_penalty":1.1,)"
           R"("repeat_last_n":32,"seed":9,"stop":["x","y"],"user":"u","n":1,"stream":false,"presence_penalty":0.0)"));
  ASSERT_TRUE(line.request) << line.error.message;
  EXPECT_EQ(line.custom_id, "a");
  EXPECT_FALSE(line.request->chat);
  EXPECT_EQ(std::get<std::string>(line.request->prompt), "Once");
  EXPECT_EQ(line.request->token_limit, 7);
  const SamplingOptions& o = line.request->sampling;
  EXPECT_EQ(std::tie(o.temperature, o.top_p, o.min_p, o.repeat_penalty), std::make_tuple(0.5, 0.9, 0.1, 1.1));
  EXPECT_EQ(std::make_tuple(o.top_k, o.repeat_last_n, o.seed), std::make_tuple(40, 32, 9U));
  EXPECT_EQ(line.request->stops, (std::vector<std::string>{"x", "y"}));
}

TEST(RequestLine, PromptsOfTokensAndOfOne) {
  const auto prompt_of = [](const std::string& prompt) {
    return parse(R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":)" + prompt + "}}");
  };
  using Tokens = std::vector<int32_t>;
  EXPECT_EQ(std::get<Tokens>(prompt_of("[1,22,333]").request->prompt), (Tokens{1, 22, 333}));
  EXPECT_EQ(std::get<Tokens>(prompt_of("[[1,22]]").request->prompt), (Tokens{1, 22}));
  EXPECT_EQ(std::get<std::string>(prompt_of(R"(["one"])").request->prompt), "one");
  EXPECT_TRUE(std::get<Tokens>(prompt_of("[]").request->prompt).empty());  // refused with the model at hand
  for (const char* wrong : {R"(["a","b"])", "[[1],[2]]", "[1,-2]", "[1,2.5]", "[4294967296]", R"([1,"a"])", "7", "{}",
                            "true", "null", "[null]", R"([["a"]])"}) {
    EXPECT_FALSE(prompt_of(wrong).request) << wrong;
    EXPECT_EQ(prompt_of(wrong).error.param, "prompt") << wrong;
  }
}

TEST(RequestLine, Chat) {
  const RequestLine line = parse(chat(
      R"([{"role":"developer","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"a"},)"
      R"({"type":"text","text":"b"}]},{"role":"assistant","content":"c","tool_calls":null},{"role":"user","content":"d"}])",
      R"("max_completion_tokens":3,"response_format":{"type":"json_object"},"tools":[],"tool_choice":"none")"));
  ASSERT_TRUE(line.request) << line.error.message;
  EXPECT_TRUE(line.request->chat);
  ASSERT_EQ(line.request->messages.size(), 4U);
  EXPECT_EQ(line.request->messages[0].role, "system");
  EXPECT_EQ(line.request->messages[1].text, "ab");
  EXPECT_EQ(line.request->token_limit, 3);
  EXPECT_FALSE(line.request->sampling.grammar.empty());
}

TEST(RequestLine, WrongMessages) {
  for (const char* wrong :
       {"[]", "{}", "\"hello\"", "[7]", R"([{"role":"user"}])", R"([{"content":"a"}])",
        R"([{"role":"tool","content":"a"}])", R"([{"role":"user","content":7}])",
        R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])",
        R"([{"role":"user","content":[{"type":"text"}]}])", R"([{"role":"user","content":["a"]}])",
        R"([{"role":"user","content":"a","name":"Anna"}])", R"([{"role":"user","content":"a\u0000b"}])",
        R"([{"role":"assistant","content":"a","tool_calls":[{}]}])"}) {
    const RequestLine line = parse(chat(wrong));
    EXPECT_FALSE(line.request) << wrong;
    EXPECT_TRUE(line.error.param.starts_with("messages")) << wrong << ": " << line.error.param;
    EXPECT_EQ(line.custom_id, "c");
  }
  EXPECT_FALSE(parse(R"({"custom_id":"c","url":"/v1/chat/completions","body":{"prompt":"a"}})").request);
}

TEST(RequestLine, DefaultsAreWhatIsNotSaid) {
  RequestDefaults defaults;
  defaults.sampling.temperature = 0.7;
  defaults.sampling.top_k = 5;
  defaults.seed = 3;
  defaults.token_limit = 11;
  defaults.stops = {"END"};
  const ApiRequest plain = *parse(completion("a"), defaults).request;
  EXPECT_EQ(plain.sampling.temperature, 0.7);
  EXPECT_EQ(plain.sampling.seed, 3U);
  EXPECT_EQ(plain.token_limit, 11);
  EXPECT_EQ(plain.stops, std::vector<std::string>{"END"});
  const ApiRequest said =
      *parse(completion("a", R"("temperature":0,"max_tokens":2,"seed":8,"stop":"x")"), defaults).request;
  EXPECT_EQ(said.sampling.temperature, 0);
  EXPECT_EQ(said.sampling.top_k, 5);
  EXPECT_EQ(said.sampling.seed, 8U);
  EXPECT_EQ(said.token_limit, 2);
  EXPECT_EQ(said.stops, std::vector<std::string>{"x"});
  // null is as good as nothing.
  const ApiRequest null =
      *parse(completion("a", R"("temperature":null,"stop":null,"logprobs":null,"seed":null)"), defaults).request;
  EXPECT_EQ(null.sampling.temperature, 0.7);
  EXPECT_EQ(null.stops, std::vector<std::string>{"END"});
}

TEST(RequestLine, SeedsOfTheirOwn) {
  const auto seed = [](const std::string& id, const std::string& more = "") {
    return parse(completion(id, more)).request->sampling.seed;
  };
  EXPECT_EQ(seed("a"), seed("a", R"("max_tokens":5)"));
  EXPECT_NE(seed("a"), seed("b"));
  EXPECT_LE(seed("a"), 0xffffffffU);
  EXPECT_EQ(seed("a", R"("seed":-1)"), UINT64_MAX);
  EXPECT_EQ(seed("a", R"("seed":18446744073709551615)"), UINT64_MAX);
  EXPECT_EQ(error_of(R"("seed":1.5)").param, "seed");
  EXPECT_EQ(error_of(R"("seed":18446744073709551616)").param, "seed");
}

TEST(RequestLine, WhatWouldChangeTheAnswerIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {{"n", "2"},
                                                       {"n", "0"},
                                                       {"stream", "true"},
                                                       {"presence_penalty", "0.5"},
                                                       {"logprobs", "0"},
                                                       {"logprobs", "5"},
                                                       {"echo", "true"},
                                                       {"best_of", "3"},
                                                       {"suffix", "\"x\""},
                                                       {"max_tokens", "0"},
                                                       {"max_tokens", "1.5"},
                                                       {"max_tokens", "\"5\""},
                                                       {"max_tokens", "-1"},
                                                       {"stop", "\"\""},
                                                       {"stop", "[1]"},
                                                       {"temperature", "\"hot\""},
                                                       {"temperature", "-1"},
                                                       {"top_p", "2"},
                                                       {"logit_bias", "{\"1\":5}"},
                                                       {"frequency_penalty", "1"},
                                                       {"top_k", "-1"},
                                                       {"temprature", "1"},
                                                       {"ignore_eos", "1"},
                                                       {"max_tokens", "99999999999999999999"},
                                                       {"response_format", "{\"type\":\"json_schema\"}"},
                                                       {"response_format", "7"},
                                                       {"model", "7"}};
  for (const auto& [key, value] : cases) {
    const RequestError error = error_of('"' + std::string(key) + "\":" + value);
    EXPECT_EQ(error.param, key) << value;
    EXPECT_EQ(error.status_code, 400);
    EXPECT_NE(error.message.find(key), std::string::npos) << error.message;
  }
  EXPECT_NE(error_of(R"("top_p":0)").message.find("top-p"), std::string::npos);
  const std::string both = R"("max_tokens":3,"max_completion_tokens":4)";
  EXPECT_EQ(parse(chat(R"([{"role":"user","content":"a"}])", both)).error.param, "max_completion_tokens");
}

TEST(RequestLine, WhatIsNoRequest) {
  for (const char* wrong : {"{", "[]", "7", "null", "\"a\"", "{\"custom_id\":\"a\"", "\xff", "{\"custom_id\":\"\xc3\"}",
                            R"({"custom_id":"a","url":"\ud800"})"}) {
    const RequestLine line = parse(wrong);
    EXPECT_FALSE(line.request) << wrong;
    EXPECT_EQ(line.error.code, "invalid_json") << wrong;
    EXPECT_TRUE(line.custom_id.empty());
  }
  EXPECT_EQ(parse("{}").error.param, "custom_id");
  EXPECT_EQ(parse(R"({"custom_id":""})").error.param, "custom_id");
  EXPECT_EQ(parse(R"({"custom_id":5})").error.param, "custom_id");
  EXPECT_EQ(parse(R"({"custom_id":"a"})").error.param, "url");
  EXPECT_EQ(parse(R"({"custom_id":"a","url":"/v1/embeddings","body":{}})").error.param, "url");
  EXPECT_EQ(parse(R"({"custom_id":"a","url":"/v1/completions"})").error.param, "body");
  EXPECT_EQ(parse(R"({"custom_id":"a","url":"/v1/completions","body":[]})").error.param, "body");
  EXPECT_EQ(parse(R"({"custom_id":"a","method":"GET","url":"/v1/completions","body":{"prompt":"a"}})").error.param,
            "method");
  EXPECT_EQ(parse(R"({"custom_id":"a","url":"/v1/completions","body":{"prompt":"a"},"extra":1})").error.param, "extra");
}

TEST(RequestLine, HugeOnesTakeLittleMemory) {
  EXPECT_EQ(parse(std::string(kLongestRequestLine + 1, ' ')).error.code, "line_too_long");
  std::string values = "[";
  for (size_t i = 0; i < kMostJsonValues; ++i) values += "[],";
  EXPECT_EQ(parse(values).error.code, "line_too_long");
  EXPECT_EQ(parse(std::string(kMostJsonValues / 2, '[')).error.code, "invalid_json");
  // Commas within text are none of these.
  EXPECT_TRUE(parse(completion("a", R"("user":"\")" + std::string(kMostJsonValues, ',') + "\"")).request);
}

}  // namespace
}  // namespace drafthorse::cli
