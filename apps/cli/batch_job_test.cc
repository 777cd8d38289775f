// A job on an engine that makes texts up, and what is reported of it.
#include "batch_job.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "batch_report.h"
#include "testing/batch_files.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::json;

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
