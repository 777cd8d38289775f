// `drafthorse batch` without a model: lines of requests and results, and a job on an engine that makes texts up.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "batch_job.h"
#include "batch_report.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

constexpr const char* kModel = "model.gguf";

std::string completion(const std::string& id, const std::string& more = "") {
  return R"({"custom_id":")" + id + R"(","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":"Once")" +
         (more.empty() ? "" : "," + more) + "}}";
}

std::string chat(const std::string& messages, const std::string& more = "") {
  return R"({"custom_id":"c","method":"POST","url":"/v1/chat/completions","body":{"messages":)" + messages +
         (more.empty() ? "" : "," + more) + "}}";
}

RequestLine parse(const std::string& line, const RequestDefaults& defaults = {}) {
  return parse_request_line(line, defaults);
}

// The error of a completion with this in its body.
RequestError error_of(const std::string& more) { return parse(completion("a", more)).error; }

class BatchFiles : public testing::Test {
 protected:
  BatchFiles() {
    std::string name = testing::TempDir() + "batchXXXXXX";
    folder_ = mkdtemp(name.data());
  }
  ~BatchFiles() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
    return path(name);
  }
  std::string read(const std::string& name) const {
    std::stringstream text;
    text << std::ifstream(path(name), std::ios::binary).rdbuf();
    return text.str();
  }
  std::unique_ptr<BatchInput> input(const std::string& text) const {
    return std::move(BatchInput::open(write("in.jsonl", text), {})).value();
  }
  Result<std::unique_ptr<ResultsFile>> results(const BatchInput& of, ResultsMode mode) const {
    return ResultsFile::open(path("out.jsonl"), mode, of, kModel);
  }

 private:
  std::string folder_;
};

// --- lines of requests

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

// --- the file of requests

TEST_F(BatchFiles, InputIsReadAgainByLine) {
  const auto in =
      input("\xef\xbb\xbf" + completion("a") + "\r\n\n  \n" + completion("b") + "\nnonsense\n" + completion("c"));
  ASSERT_EQ(in->lines().size(), 4U);
  EXPECT_EQ(in->lines()[0].number, 1);
  EXPECT_EQ(in->lines()[1].number, 4);
  EXPECT_EQ(in->lines()[2].number, 5);
  EXPECT_FALSE(in->lines()[2].valid);
  EXPECT_TRUE(in->lines()[3].valid);
  for (size_t i = 0; i < 4; ++i) {
    const Result<RequestLine> line = in->read(i);
    ASSERT_TRUE(line.ok()) << line.status().message();
    EXPECT_EQ(line->custom_id, in->lines()[i].custom_id);
  }
  EXPECT_EQ(in->find("b"), 1U);
  EXPECT_FALSE(in->find("d"));
  EXPECT_EQ(in->find_number(5), 2U);
  EXPECT_FALSE(in->find_number(2));
}

TEST_F(BatchFiles, LinesAcrossPiecesOfTheFile) {
  std::string text;
  for (int i = 0; i < 40; ++i) {
    text +=
        completion(fmt::format("id{}", i), "\"user\":\"" + std::string(static_cast<size_t>(i) * 700, 'x') + '"') + "\n";
  }
  const auto in = input(text);
  ASSERT_EQ(in->lines().size(), 40U);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(in->lines()[i].custom_id, fmt::format("id{}", i));
    EXPECT_TRUE(in->read(i).ok());
  }
}

TEST_F(BatchFiles, WhatIsWrongWithAnInput) {
  const auto status = [&](const std::string& text) { return BatchInput::open(write("in.jsonl", text), {}).status(); };
  const Status twice = status(completion("a") + "\n\n" + completion("b") + "\n" + completion("a"));
  EXPECT_EQ(twice.kind(), StatusKind::kUsage);
  EXPECT_NE(twice.message().find("lines 1 and 4"), std::string::npos) << twice.message();
  EXPECT_EQ(status("").kind(), StatusKind::kFile);
  EXPECT_EQ(status("\n \n").kind(), StatusKind::kFile);
  EXPECT_EQ(BatchInput::open(path("none"), {}).status().kind(), StatusKind::kFile);
  EXPECT_EQ(BatchInput::open(path(""), {}).status().kind(), StatusKind::kFile);
}

TEST_F(BatchFiles, AnInputThatChangesIsNoticed) {
  const auto in = input(completion("a") + "\n" + completion("b") + "\n");
  write("in.jsonl", completion("b") + "\n" + completion("a") + "\n");
  EXPECT_EQ(in->read(0).status().kind(), StatusKind::kFile);
  write("in.jsonl", "");
  EXPECT_EQ(in->read(0).status().kind(), StatusKind::kFile);
}

// --- lines of results

TEST(ResultLines, Answers) {
  ResultWriter writer(kModel);
  BatchResult result;
  result.text = "f\xc3\xbcr \xff\n\"x\"";
  result.stop = StopReason::kStopText;
  result.prompt_tokens = 3;
  result.generated_tokens = 5;
  const Json chat_line = Json::parse(writer.answer("a\n", true, result, std::nullopt));
  EXPECT_EQ(chat_line["custom_id"], "a\n");
  EXPECT_TRUE(chat_line["error"].is_null());
  EXPECT_EQ(chat_line["response"]["status_code"], 200);
  const Json& body = chat_line["response"]["body"];
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["model"], kModel);
  EXPECT_EQ(body["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "f\xc3\xbcr \xef\xbf\xbd\n\"x\"");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["total_tokens"], 8);
  EXPECT_FALSE(body.contains("seed"));
  result.stop = StopReason::kTokenLimit;
  const Json line = Json::parse(writer.answer("a", false, result, 7));
  EXPECT_EQ(line["response"]["body"]["object"], "text_completion");
  EXPECT_EQ(line["response"]["body"]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(line["response"]["body"]["seed"], 7);
  EXPECT_NE(line["id"], chat_line["id"]);
  EXPECT_EQ(writer.answer("a", false, result, 7).find('\n'), std::string::npos);
}

TEST(ResultLines, AreReadAgain) {
  ResultWriter writer(kModel);
  const auto answer = parse_result_line(writer.answer("x", true, {}, std::nullopt));
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->custom_id, "x");
  EXPECT_FALSE(answer->failed);
  EXPECT_EQ(answer->model, kModel);
  const std::string text = writer.failure({.number = 17}, {400, "wrong", "", "invalid_json"});
  EXPECT_TRUE(Json::parse(text)["custom_id"].is_null());
  EXPECT_EQ(Json::parse(text)["response"]["body"]["error"]["message"], "wrong");
  EXPECT_EQ(Json::parse(text)["response"]["body"]["error"]["type"], "invalid_request_error");
  EXPECT_TRUE(Json::parse(text)["response"]["body"]["error"]["param"].is_null());
  const auto failure = parse_result_line(text);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->number, 17);
  EXPECT_TRUE(failure->failed);
  for (const std::string& wrong :
       {std::string("{}"), std::string("x"), text.substr(0, text.size() - 1), std::string(R"({"id":"batch_req_1"})"),
        std::string(R"({"id":"batch_req_1","custom_id":"a","response":{"status_code":200,"body":[]}})"),
        std::string(R"({"id":"batch_req_1","custom_id":null,"response":{"status_code":400}})")}) {
    EXPECT_FALSE(parse_result_line(wrong)) << wrong;
  }
}

// --- the file of results

TEST_F(BatchFiles, ResultsAreAppendedAndFoundAgain) {
  const auto in = input(completion("a") + "\n" + completion("b") + "\nbad\n");
  ResultWriter writer(kModel);
  {
    auto file = std::move(results(*in, ResultsMode::kNew)).value();
    ASSERT_TRUE(file->append(writer.answer("b", false, {}, {})).ok());
    ASSERT_TRUE(file->append(writer.failure(in->lines()[2], {400, "bad", "", ""})).ok());
    EXPECT_TRUE(file->finish().ok());
    // Locked, for anybody else.
    EXPECT_EQ(results(*in, ResultsMode::kResume).status().kind(), StatusKind::kFile);
  }
  EXPECT_EQ(results(*in, ResultsMode::kNew).status().kind(), StatusKind::kUsage);
  const std::string before = read("out.jsonl");
  {
    const auto file = std::move(results(*in, ResultsMode::kResume)).value();
    EXPECT_FALSE(file->has(0));
    EXPECT_TRUE(file->has(1));
    EXPECT_TRUE(file->has(2));
    EXPECT_EQ(file->found_failed(), 1);
  }
  EXPECT_EQ(read("out.jsonl"), before);
  const auto file = std::move(results(*in, ResultsMode::kRetryErrors)).value();
  EXPECT_TRUE(file->has(1));
  EXPECT_FALSE(file->has(2));
  EXPECT_EQ(read("out.jsonl"), before.substr(0, before.find('\n') + 1));
  EXPECT_FALSE(std::filesystem::exists(path("out.jsonl.new")));
  // The new file is locked as the old one was, and written to.
  EXPECT_EQ(results(*in, ResultsMode::kResume).status().kind(), StatusKind::kFile);
  ASSERT_TRUE(file->append(writer.answer("a", false, {}, {})).ok());
  EXPECT_EQ(std::ranges::count(read("out.jsonl"), '\n'), 2);
}

TEST_F(BatchFiles, ATornLineIsCutWhereverItIsTorn) {
  const auto in = input(completion("a") + "\n" + completion("b") + "\n");
  ResultWriter writer(kModel);
  const std::string whole = writer.answer("a", false, {}, {}) + "\n";
  const std::string next = writer.answer("b", false, {}, {}) + "\n";
  for (size_t bytes = 0; bytes < next.size(); ++bytes) {
    write("out.jsonl", whole + next.substr(0, bytes));
    const auto file = std::move(results(*in, ResultsMode::kResume)).value();
    EXPECT_TRUE(file->has(0));
    EXPECT_FALSE(file->has(1));
    ASSERT_EQ(read("out.jsonl"), whole) << bytes;
  }
  for (const std::string& torn : {std::string(100, '\0'), next.substr(0, 40) + "\n"}) {
    write("out.jsonl", whole + torn);
    EXPECT_TRUE(results(*in, ResultsMode::kResume).ok());
    EXPECT_EQ(read("out.jsonl"), whole);
  }
}

TEST_F(BatchFiles, FilesOfOthersAreLeftAlone) {
  const auto in = input(completion("a") + "\n" + completion("b") + "\nbad\n");
  ResultWriter writer(kModel);
  const std::string a = writer.answer("a", false, {}, {}) + "\n";
  const std::string texts[] = {"my notes",
                               "my notes\n",
                               a + "my notes",
                               a.substr(0, 50) + "\n" + a,
                               a + a,
                               writer.answer("unknown", false, {}, {}) + "\n",
                               writer.failure({.number = 2}, {}) + "\n" + writer.failure({.number = 9}, {}) + "\n",
                               ResultWriter("other.gguf").answer("a", false, {}, {}) + "\n"};
  for (const std::string& text : texts) {
    write("out.jsonl", text);
    for (const ResultsMode mode : {ResultsMode::kNew, ResultsMode::kResume, ResultsMode::kRetryErrors}) {
      EXPECT_EQ(results(*in, mode).status().kind(), StatusKind::kUsage) << text;
      EXPECT_EQ(read("out.jsonl"), text);
    }
  }
  EXPECT_EQ(ResultsFile::open(path("in.jsonl"), ResultsMode::kResume, *in, kModel).status().kind(), StatusKind::kUsage);
  EXPECT_EQ(ResultsFile::open(path(""), ResultsMode::kNew, *in, kModel).status().kind(), StatusKind::kFile);
}

TEST_F(BatchFiles, AFullDiskIsAnError) {
  const auto in = input(completion("a"));
  const auto file = std::move(ResultsFile::open("/dev/full", ResultsMode::kNew, *in, kModel)).value();
  EXPECT_EQ(file->append("x").kind(), StatusKind::kRuntime);
  EXPECT_EQ(ResultsFile::open("/dev/full", ResultsMode::kResume, *in, kModel).status().kind(), StatusKind::kUsage);
}

// --- a job

// Works on a few requests at once, and each takes as many steps as it has tokens. A text is what its prompt and seed
// say, whatever shares a step with it.
class FakeEngine : public BatchEngine {
 public:
  explicit FakeEngine(size_t room) : room_(room) {}

  static BatchRequest make(const ApiRequest& request, Verdict& verdict) {
    BatchRequest made;
    made.prompt.assign(std::get<std::string>(request.prompt).size(), 1);
    made.sampling = request.sampling;
    made.token_limit = request.token_limit;
    if (request.token_limit == 13) verdict.refuse("max_tokens", "13 is refused");
    return made;
  }
  static std::string text_of(const BatchRequest& request) {
    return std::string(static_cast<size_t>(request.token_limit), 'x') + std::to_string(request.sampling.seed);
  }

  Status submit(BatchRequest request) override {
    if (request.token_limit == 14) return usage_error("14 cannot run");
    waiting_.push_back(std::move(request));
    most_waiting_ = std::max(most_waiting_, waiting_.size());
    return {};
  }
  bool idle() const override { return waiting_.empty() && active_.empty(); }
  int64_t waiting() const override { return static_cast<int64_t>(waiting_.size()); }
  int64_t active() const override { return static_cast<int64_t>(active_.size()); }
  Status step() override {
    EXPECT_FALSE(idle());
    if (steps_left_ == 0) return error_;
    --steps_left_;
    for (; active_.size() < room_ && !waiting_.empty(); waiting_.pop_front()) active_.push_back({waiting_.front(), 0});
    std::erase_if(active_, [&](Active& one) {
      if (++one.tokens < one.request.token_limit) return false;
      BatchResult result;
      result.id = one.request.id;
      result.text = text_of(one.request);
      result.stop = StopReason::kTokenLimit;
      result.generated_tokens = one.tokens;
      if (one.request.token_limit == 15) result.status = runtime_error("15 breaks");
      finished_.push_back(std::move(result));
      return true;
    });
    return {};
  }
  std::vector<BatchResult> take_finished() override { return std::exchange(finished_, {}); }

  void break_after(int steps, Status error) {
    steps_left_ = steps;
    error_ = std::move(error);
  }
  size_t most_waiting() const { return most_waiting_; }

 private:
  struct Active {
    BatchRequest request;
    int64_t tokens = 0;
  };
  size_t room_;
  std::deque<BatchRequest> waiting_;
  std::vector<Active> active_;
  std::vector<BatchResult> finished_;
  int steps_left_ = -1;
  Status error_;
  size_t most_waiting_ = 0;
};

class Jobs : public BatchFiles {
 protected:
  // Of `count` requests of 1 to 12 tokens; some lines are wrong in one way or the other.
  static std::string many(int count) {
    std::string text;
    for (int i = 0; i < count; ++i) {
      const std::string id = fmt::format("r{}", i);
      const int tokens = i % 50 == 7 ? 13 : i % 50 == 8 ? 14 : i % 50 == 9 ? 15 : 1 + i * 7 % 12;
      text += i % 50 == 6 ? "broken\n" : completion(id, "\"max_tokens\":" + std::to_string(tokens)) + "\n";
      if (i % 20 == 3) text += "\n";
    }
    return text;
  }
  Status run(const BatchInput& in, ResultsMode mode, FakeEngine& engine) {
    auto file = results(in, mode);
    RETURN_IF_ERROR(file.status());
    ResultWriter writer(kModel);
    BatchJob job(in, **file, writer, FakeEngine::make, engine, 100);
    const Status status = job.run([] {});
    counts_ = job.counts();
    return status;
  }
  // By custom_id, or line; each once.
  std::map<std::string, std::string> texts() const {
    std::map<std::string, std::string> out;
    std::istringstream lines(read("out.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const Json json = Json::parse(line);
      const Json& response = json["response"];
      const std::string key = json["custom_id"].is_null() ? json["line"].dump() : json["custom_id"].get<std::string>();
      const std::string text = response["status_code"] == 200
                                   ? response["body"]["choices"][0]["text"].get<std::string>()
                                   : response["status_code"].dump();
      EXPECT_TRUE(out.emplace(key, text).second) << key << " is there twice";
    }
    return out;
  }
  JobCounts counts_;
};

TEST_F(Jobs, EveryRequestHasOneResult) {
  const auto in = input(many(400));
  FakeEngine engine(10);
  ASSERT_TRUE(run(*in, ResultsMode::kNew, engine).ok());
  const auto found = texts();
  EXPECT_EQ(found.size(), 400U);
  EXPECT_EQ(counts_.done, 400);
  EXPECT_EQ(counts_.failed, 32);
  EXPECT_EQ(counts_.answered, 368);
  EXPECT_EQ(found.at("r7"), "400");
  EXPECT_EQ(found.at("r8"), "400");
  EXPECT_EQ(found.at("r9"), "500");
  EXPECT_EQ(found.at("r0"), "x" + std::to_string(own_seed("r0")));
  EXPECT_LE(engine.most_waiting(), 64U);  // read a little ahead only
}

TEST_F(Jobs, InterruptedAnywhereAndResumedTheResultsAreTheSame) {
  const auto in = input(many(120));
  FakeEngine whole(7);
  ASSERT_TRUE(run(*in, ResultsMode::kNew, whole).ok());
  const auto expected = texts();
  std::mt19937 random(5);
  for (int round = 0; round < 30; ++round) {
    std::filesystem::remove(path("out.jsonl"));
    Status status = interrupted_error();
    for (int part = 0; !status.ok(); ++part) {
      ASSERT_LT(part, 200);
      FakeEngine engine(1 + random() % 20);
      engine.break_after(static_cast<int>(random() % 20), interrupted_error());
      status = run(*in, ResultsMode::kResume, engine);
      if (status.ok()) break;
      EXPECT_EQ(status.kind(), StatusKind::kInterrupted);
      // A process may also be killed while it writes.
      const auto size = std::filesystem::file_size(path("out.jsonl"));
      if (size > 0 && random() % 2 == 0) std::filesystem::resize_file(path("out.jsonl"), size - random() % 300 % size);
    }
    ASSERT_EQ(texts(), expected);
  }
}

TEST_F(Jobs, FailuresAreKeptOrTriedAgain) {
  const auto in = input(many(60));
  FakeEngine first(7);
  ASSERT_TRUE(run(*in, ResultsMode::kNew, first).ok());
  const auto expected = texts();
  FakeEngine second(7);
  ASSERT_TRUE(run(*in, ResultsMode::kResume, second).ok());
  EXPECT_EQ(counts_.earlier, 60);
  EXPECT_EQ(counts_.failed, 8);
  EXPECT_EQ(second.most_waiting(), 0U);
  FakeEngine third(7);
  ASSERT_TRUE(run(*in, ResultsMode::kRetryErrors, third).ok());
  EXPECT_EQ(counts_.earlier, 52);
  EXPECT_EQ(counts_.failed, 8);
  EXPECT_EQ(texts(), expected);
}

TEST_F(Jobs, AnErrorOfTheBatchKeepsWhatIsDone) {
  const auto in = input(many(40));
  FakeEngine engine(5);
  engine.break_after(20, runtime_error("the disk is gone"));
  const Status status = run(*in, ResultsMode::kNew, engine);
  EXPECT_EQ(status.message(), "the disk is gone");
  EXPECT_GT(texts().size(), 5U);
  EXPECT_LT(texts().size(), 40U);
}

// --- reports

TEST(Report, SpeedOfTheLastWhile) {
  SpeedMeter meter;
  EXPECT_EQ(meter.tokens_per_s(), 0);
  meter.note(0, 0);
  EXPECT_EQ(meter.tokens_per_s(), 0);
  constexpr int64_t kSecond = 1'000'000'000;
  for (int s = 1; s <= 60; ++s) meter.note(s * kSecond, 100 * s);
  EXPECT_NEAR(meter.tokens_per_s(), 100, 1e-9);
  for (int s = 61; s <= 90; ++s) meter.note(s * kSecond, 6000 + 10 * (s - 60));
  EXPECT_NEAR(meter.tokens_per_s(), 10, 1e-9);
}

TEST(Report, TimeLeft) {
  JobCounts counts;
  counts.requests = 100;
  EXPECT_LT(time_left(counts, 0, 50), 0);
  counts.done = counts.answered = 20;
  counts.generated_tokens = 200;
  counts.most_tokens = 2000;
  counts.answered_most_tokens = 400;
  EXPECT_DOUBLE_EQ(time_left(counts, 300, 50), 10);
  EXPECT_DOUBLE_EQ(time_left(counts, 3000, 50), 0);
  EXPECT_LT(time_left(counts, 0, 0), 0);
  EXPECT_EQ(format_duration(0.2), "0 s");
  EXPECT_EQ(format_duration(59.4), "59 s");
  EXPECT_EQ(format_duration(245), "4:05 min");
  EXPECT_EQ(format_duration(3600 * 27 + 60 * 5), "27:05 h");
}

}  // namespace
}  // namespace drafthorse::cli
