// What a batch reads and writes: the file of requests, lines of results, and their file.
#include "testing/batch_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

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

}  // namespace
}  // namespace drafthorse::cli
