// The pure parts of `drafthorse bench --batch`: what is compared, what a run's files become, what is predicted for it,
// the lines, timelines and the report.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bench_batch_measure.h"
#include "bench_batch_plan.h"
#include "bench_batch_report.h"
#include "bench_batch_runs.h"

namespace drafthorse::cli {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string> names(const BatchGrid& grid) {
  std::vector<std::string> out;
  for (const BatchContender& one : grid.contenders) out.push_back(one.name);
  return out;
}

TEST(BatchGrids, WhatIsComparedWithoutBeingAsked) {
  BatchBenchRequest request;
  EXPECT_EQ(names(*plan_batch_bench(request)), std::vector<std::string>{"no draft"});
  request.has_draft = true;
  const auto grid = plan_batch_bench(request);
  ASSERT_TRUE(grid.ok());
  EXPECT_EQ(names(*grid), (std::vector<std::string>{"no draft", "depth auto"}));
  EXPECT_EQ(grid->baseline, "no draft");
  EXPECT_EQ(grid->sequences, (std::vector<int64_t>{4, 16, 64}));
  EXPECT_EQ(grid->contenders[1].flags(), (std::vector<std::string>{"--regime", "auto"}));
}

TEST(BatchGrids, OtherRegimesContendWithoutADraft) {
  BatchBenchRequest request;
  request.has_draft = true;
  request.depths = {"4", "auto"};
  request.regimes = {"stream", "layered", "auto"};
  request.baseline = "no draft, layered";
  const auto grid = plan_batch_bench(request);
  ASSERT_TRUE(grid.ok());
  EXPECT_EQ(names(*grid),
            (std::vector<std::string>{"depth 4, stream", "depth auto, stream", "no draft, layered", "no draft"}));
  EXPECT_EQ(grid->contenders[0].flags(), (std::vector<std::string>{"--regime", "stream", "--draft-depth", "4"}));
  EXPECT_EQ(grid->contenders[2].flags(), (std::vector<std::string>{"--regime", "layered"}));
}

TEST(BatchGrids, WhatMakesNoSenseIsRefused) {
  const auto said = [](auto change) {
    BatchBenchRequest request;
    request.has_draft = true;
    change(request);
    const auto grid = plan_batch_bench(request);
    EXPECT_EQ(grid.status().kind(), StatusKind::kUsage);
    return grid.status().message();
  };
  EXPECT_NE(said([](auto& r) { r.depths = {"deep"}; }).find("'deep'"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.depths = {"65"}; }).find("'65'"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.depths = {"99999999999999999999"}; }).find("--depths"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.regimes = {"streams"}; }).find("did you mean stream"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.sequences = {"0"}; }).find("--sequences"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.sequences = {"4", "513"}; }).find("'513'"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.baseline = "me"; }).find("no draft; depth auto"), std::string::npos);
  EXPECT_NE(said([](auto& r) { r.requests = 8; }).find("--requests 8 are fewer than --sequences 16"),
            std::string::npos);
  EXPECT_NE(said([](auto& r) {
              r.has_draft = false;
              r.depths = {"off", "2"};
            }).find("-d FILE"),
            std::string::npos);
}

TEST(BatchRequests, PromptsTakeTurns) {
  const std::vector<BenchPrompt> prompts = {{"a", "one \"1\""}, {"b", "two"}};
  const std::string three = requests_text(prompts, 3, 7);
  std::vector<Json> lines;
  for (size_t at = 0; at < three.size(); at = three.find('\n', at) + 1) {
    lines.push_back(Json::parse(three.substr(at, three.find('\n', at) - at)));
  }
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(lines[0]["body"]["prompt"], "one \"1\"");
  EXPECT_EQ(lines[1]["body"]["prompt"], "two");
  EXPECT_EQ(lines[2]["body"]["prompt"], "one \"1\"");
  EXPECT_EQ(lines[2]["body"]["max_tokens"], 7);
  EXPECT_EQ(lines[2]["body"]["ignore_eos"], true);
  EXPECT_LT(lines[0]["custom_id"], lines[1]["custom_id"]);
  // A request is the same however many there are; ten come after nine.
  const std::string twelve = requests_text(prompts, 12, 7);
  EXPECT_TRUE(twelve.starts_with(three));
  EXPECT_LT(twelve.find("0000009"), twelve.find("0000010"));
}

IterationLine iteration(int64_t generating, int64_t prompt, double s, int64_t drafted = 0, int64_t accepted = 0) {
  IterationLine one;
  one.generating = generating;
  one.prompt_tokens = prompt;
  one.cached_positions = 100 * generating;
  one.drafted_tokens = drafted;
  one.accepted_tokens = accepted;
  one.parts = {s, 0, s / 4, s / 4, s / 2, 0, 1e9 * s, static_cast<double>(generating + accepted)};
  return one;
}

TEST(BatchMeasures, OnlyWhatGeneratesAtFullStrengthIsDecoding) {
  const std::vector<IterationLine> all = {iteration(0, 40, 1), iteration(9, 5, 1), iteration(10, 0, 1),
                                          iteration(9, 0, 1),  iteration(8, 0, 1), iteration(10, 0, 0)};
  EXPECT_EQ(decoding_iterations(all), (std::vector<size_t>{2, 3}));
  EXPECT_TRUE(decoding_iterations({iteration(0, 4, 1)}).empty());
  EXPECT_TRUE(decoding_iterations({}).empty());
}

std::string statistics(const Json& changes = Json::object()) {
  Json json = {{"generated_tokens", 60}, {"prompt_tokens", 40}, {"busy_s", 5.0},     {"iterations", 4},
               {"most_sequences", 2},    {"acceptance", 0.5},   {"expert_slots", 7}, {"experts", 64},
               {"ram_budget_bytes", 99}, {"peak_rss_bytes", 88}};
  json.update(changes);
  return json.dump();
}

std::string result_line(const std::string& id, const std::string& text, int code = 200) {
  const Json body =
      code == 200 ? Json{{"choices", Json::array({Json{{"text", text}}})}} : Json{{"error", {{"message", text}}}};
  return Json{{"custom_id", id}, {"response", {{"status_code", code}, {"body", body}}}, {"error", nullptr}}.dump() +
         '\n';
}

BatchBenchRun asked() {
  BatchBenchRun run;
  run.key = {"no draft", "1G", 2, 1};
  run.baseline = "no draft";
  run.depth = "off";
  run.regime = "auto";
  run.drafter = "none";
  run.tokens = 30;
  run.requests = 2;
  return run;
}

TEST(BatchMeasures, ARunsFilesBecomeItsLine) {
  const std::vector<IterationLine> all = {iteration(0, 40, 3), iteration(2, 0, 0.5), iteration(2, 0, 0.2),
                                          iteration(2, 0, 0.4), iteration(1, 0, 9)};
  const auto run = with_batch_statistics(asked(), statistics(), all, result_line("1", "ab") + result_line("2", "c"));
  ASSERT_TRUE(run.ok()) << run.status().message();
  EXPECT_DOUBLE_EQ(run->tokens_per_s, 12);
  EXPECT_EQ(run->slots, 7);
  ASSERT_TRUE(run->decoding);
  EXPECT_EQ(run->decoding->iterations, 3);
  EXPECT_DOUBLE_EQ(run->decoding->tokens_per_s, 5);  // of the median iteration
  EXPECT_DOUBLE_EQ(run->decoding->parts.seconds, 0.4);
  EXPECT_DOUBLE_EQ(run->decoding->parts.stall_s, 0.2);
  EXPECT_DOUBLE_EQ(run->decoding->computing_share, 0.5);
  EXPECT_DOUBLE_EQ(run->decoding->kv_length, 100);
  EXPECT_EQ(run->text_hashes.size(), 2U);
  // A byte that moves from one text to another changes the whole.
  const auto moved = with_batch_statistics(asked(), statistics(), all, result_line("1", "a") + result_line("2", "bc"));
  EXPECT_NE(moved->text_hash, run->text_hash);
  // The order in which they finished does not.
  const auto turned = with_batch_statistics(asked(), statistics(), all, result_line("2", "c") + result_line("1", "ab"));
  EXPECT_EQ(turned->text_hash, run->text_hash);
}

TEST(BatchMeasures, WhatIsMissingIsAnError) {
  const std::string both = result_line("1", "ab") + result_line("2", "c");
  const auto kind = [&](const std::string& stats, const std::string& results) {
    return with_batch_statistics(asked(), stats, {}, results).status().kind();
  };
  EXPECT_EQ(kind(statistics(), both), StatusKind::kOk);
  EXPECT_FALSE(with_batch_statistics(asked(), statistics(), {}, both)->decoding);
  EXPECT_EQ(kind("", both), StatusKind::kFile);
  EXPECT_EQ(kind(statistics({{"busy_s", 0}}), both), StatusKind::kFile);
  EXPECT_EQ(kind(statistics({{"experts", "many"}}), both), StatusKind::kFile);
  EXPECT_EQ(kind(statistics(), result_line("1", "ab")), StatusKind::kRuntime);
  EXPECT_EQ(kind(statistics(), "{}\n"), StatusKind::kFile);
  const auto failed = with_batch_statistics(asked(), statistics(), {}, both + result_line("3", "the disk broke", 500));
  EXPECT_NE(failed.status().message().find("the disk broke"), std::string::npos);
  EXPECT_EQ(parse_iterations("{}\n").status().kind(), StatusKind::kFile);
  EXPECT_EQ(parse_iterations("nothing").status().kind(), StatusKind::kFile);
}

TEST(BatchPredictions, AcceptanceOfEachTokenMakesWhatWasAccepted) {
  EXPECT_NEAR(acceptance_of_each(0.75, 2), 0.5, 1e-9);  // 1/2 + 1/4
  EXPECT_NEAR(acceptance_of_each(3, 3), 1, 1e-9);
  EXPECT_NEAR(acceptance_of_each(0, 3), 0, 1e-9);
  EXPECT_EQ(acceptance_of_each(0, 0), 0);
}

// Two layers of 8 experts, two of them used by a token; 1 MB each, at 1 GB/s.
BatchPlanInput small_machine() {
  BatchPlanInput input;
  LayerCost layer;
  layer.dense = CostCurve({{1, 1e-4}, {100, 1e-3}});
  layer.expert = CostCurve({{1, 1e-5}, {100, 1e-4}});
  layer.experts = 8;
  input.target.layers = {layer, layer};
  input.target.head = CostCurve({{1, 1e-4}, {100, 1e-3}});
  input.target.popularity = expert_shares(8, 2, 1);
  input.target.expert_bytes = 1e6;
  input.platform.link_bytes_per_s = 1e9;
  input.memory = {.budget_bytes = 1, .slot_bytes = 1'000'000, .total_experts = 16, .least_slots = 3, .stream_slots = 3};
  return input;
}

TEST(BatchPredictions, AreToldWhatTheRunHad) {
  const BatchPlanInput input = small_machine();
  BatchBenchRun run = asked();
  run.slots = 3;
  const std::vector<IterationLine> all = {iteration(0, 9, 1), iteration(16, 0, 0.1), iteration(16, 0, 0.1)};
  const auto streamed = predict_parts(input, run, all);
  ASSERT_TRUE(streamed);
  EXPECT_NEAR(streamed->bytes_read, 16e6, 1e6);  // nearly all experts are used, none stays
  EXPECT_DOUBLE_EQ(streamed->tokens, 16);
  EXPECT_GT(streamed->stall_s, 0);
  EXPECT_NEAR(streamed->seconds, streamed->attention_s + streamed->experts_s + streamed->stall_s + streamed->head_s,
              1e-9);
  // As the planner says it, which is asked about this very state.
  BatchPlanInput same = input;
  same.memory.budget_bytes = 3'000'000;
  same.job.prompt_tokens = 100;
  EXPECT_DOUBLE_EQ(streamed->seconds, evaluate(same, Pipeline::kStreamed, 16, 0).decode.seconds);
  run.slots = 16;
  EXPECT_EQ(predict_parts(input, run, all)->bytes_read, 0);
  run.slots = 3;
  run.regime = "layered";
  EXPECT_GT(predict_parts(input, run, all)->seconds, streamed->seconds);
}

TEST(BatchPredictions, AreLeftOutWhereNothingIsKnown) {
  BatchPlanInput input = small_machine();
  BatchBenchRun run = asked();
  run.slots = 3;
  const std::vector<IterationLine> drafted = {iteration(4, 0, 0.1, 8, 4)};
  run.regime = "cache";
  EXPECT_FALSE(predict_parts(input, run, drafted));
  run.regime = "auto";
  run.drafter = "shared-kv";
  EXPECT_FALSE(predict_parts(input, run, drafted));  // the input knows no draft
  EXPECT_FALSE(predict_parts(input, run, {iteration(0, 4, 1)}));
  run.drafter = "ngram";
  const auto free = predict_parts(input, run, drafted);
  ASSERT_TRUE(free);
  EXPECT_EQ(free->draft_s, 0);
  EXPECT_NEAR(free->tokens, 8, 1e-6);
  input.draft = DraftCost{input.target, {}};
  run.drafter = "model";
  EXPECT_GT(predict_parts(input, run, drafted)->draft_s, 0);
}

BatchBenchRun a_run(const std::string& contender, int64_t sequences, int64_t round, double speed) {
  BatchBenchRun run = asked();
  run.key = {contender, "1G", sequences, round};
  run.depth = contender == "no draft" ? "off" : contender.substr(contender.find(' ') + 1);
  run.drafter = contender == "no draft" ? "none" : "model";
  run.model = "/models/<m>.gguf";
  run.machine = "a machine";
  run.version = "1";
  run.bench = "drafthorse bench --batch";
  run.command = "drafthorse batch";
  run.generated_tokens = 60;
  run.busy_s = 60 / speed;
  run.tokens_per_s = speed;
  run.acceptance = 0.5;
  run.text_hash = "h";
  run.text_hashes = {"a", "b"};
  run.slots = 3;
  run.experts = 16;
  run.ram_bytes = 1 << 30;
  run.decoding = BatchBenchRun::Decoding{5,   2 * speed, contender == "no draft" ? 0.0 : 2.5,       0.5,
                                         100, 0.25,      {0.4, 0.1, 0.05, 0.05, 0.15, 0.05, 5e8, 8}};
  run.predicted = IterationParts{0.3, 0.1, 0.05, 0.05, 0.05, 0.05, 4e8, 8};
  run.link_bytes_per_s = 2.5e9;
  return run;
}

TEST(BatchLines, ComeBackAsTheyWere) {
  BatchBenchRun bare = a_run("depth 4", 2, 2, 7);
  bare.decoding.reset();
  bare.predicted.reset();
  bare.link_bytes_per_s.reset();
  BatchTimeline timeline;
  timeline.key = {"no draft", "1G", 2, 1};
  timeline.length_ms = 5;
  timeline.begins_ms = {0, 2.5};
  timeline.reads = {{0, 4}};
  timeline.stall = {{1, 1}, {3, 0.5}};
  const std::string text = json_line(to_json(a_run("no draft", 2, 1, 5))) + '\n' + json_line(to_json(bare)) + '\n' +
                           json_line(to_json(timeline)) + "\n{\"schema\":1,\"kind\":\"batch-";
  EXPECT_TRUE(is_batch_bench(text));
  const auto file = parse_batch_bench(text, "f");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_TRUE(file->last_line_cut);
  ASSERT_EQ(file->runs.size(), 2U);
  EXPECT_EQ(to_json(file->runs[0]), to_json(a_run("no draft", 2, 1, 5)));
  EXPECT_EQ(to_json(file->runs[1]), to_json(bare));
  ASSERT_EQ(file->timelines.size(), 1U);
  EXPECT_EQ(to_json(file->timelines[0]), to_json(timeline));
  EXPECT_DOUBLE_EQ(*disk_share(file->runs[0]), 0.5);
  EXPECT_FALSE(disk_share(file->runs[1]));
}

TEST(BatchLines, WhatIsNoneOfOursIsNamed) {
  Json bad = to_json(a_run("no draft", 2, 1, 5));
  bad["decoding"]["s"] = 0;
  for (const std::string& line : {bad.dump(), std::string(R"({"kind":"run"})"), std::string("x"), std::string("[]")}) {
    const auto file = parse_batch_bench(json_line(to_json(a_run("no draft", 2, 1, 5))) + '\n' + line + '\n', "f");
    EXPECT_EQ(file.status().kind(), StatusKind::kFile) << line;
    EXPECT_NE(file.status().message().find("f, line 2"), std::string::npos) << line;
  }
  EXPECT_FALSE(is_batch_bench(""));
  EXPECT_FALSE(is_batch_bench("{\"kind\":\"run\"}\n"));
}

TEST(BatchLines, TextsOfARequestAreTheSameWhoeverWritesThem) {
  std::vector<BatchBenchRun> runs = {a_run("no draft", 2, 1, 5), a_run("depth 4", 2, 1, 5), a_run("depth 4", 4, 1, 5)};
  runs[2].text_hashes = {"a", "b", "c", "d"};  // more requests; the first are the same
  EXPECT_TRUE(differing_texts(runs).empty());
  runs[2].text_hashes[1] = "x";
  ASSERT_EQ(differing_texts(runs).size(), 1U);
  EXPECT_NE(differing_texts(runs)[0].find("request 2: 'depth 4' at 1G, 4 at once"), std::string::npos);
  EXPECT_NE(html_report({runs, {}, false}).find("class=\"error\""), std::string::npos);
  runs[2].tokens = 99;  // another length, another text
  EXPECT_TRUE(differing_texts(runs).empty());
}

TEST(BatchSummaries, SpeedsArePairedByRound) {
  const std::vector<BatchBenchRun> runs = {a_run("no draft", 2, 1, 1), a_run("depth 4", 2, 1, 2),
                                           a_run("no draft", 2, 2, 4), a_run("depth 4", 2, 2, 32),
                                           a_run("depth 4", 8, 1, 3)};
  const BatchBenchSummary summary = summarise(runs);
  ASSERT_EQ(summary.rows.size(), 3U);
  const BatchSummary* row = summary.find("depth 4", "1G", 2);
  ASSERT_NE(row, nullptr);
  EXPECT_DOUBLE_EQ(row->tokens_per_s.median, 17);
  EXPECT_DOUBLE_EQ(row->speed.low, 2);
  EXPECT_DOUBLE_EQ(row->speed.high, 8);
  EXPECT_DOUBLE_EQ(row->mean_speed, 4);
  EXPECT_EQ(summary.find("depth 4", "1G", 8)->mean_speed, 0);  // no baseline beside it
  EXPECT_EQ(summary.find("no draft", "1G", 8), nullptr);
  const std::string text = table(summary);
  EXPECT_NE(text.find("8 at once"), std::string::npos);
  EXPECT_NE(text.find("-25"), std::string::npos) << text;  // 0.3 s predicted, 0.4 s measured
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) EXPECT_LE(text.find('\n', at) - at, 100U) << text;
}

std::string trace_of(int iterations) {
  Json events = Json::array({{{"ph", "M"}, {"name", "process_name"}}});
  const auto span = [&](const char* name, double start_ms, double ms) {
    events.push_back({{"ph", "X"}, {"name", name}, {"ts", 1e3 * start_ms}, {"dur", 1e3 * ms}});
  };
  for (int i = 0; i < iterations; ++i) {
    const double at = 10 * i;
    span("draft", at, 2);
    span("attention", at + 2, 1);
    span("stall", at + 4, 2);
    span("verify", at + 2, 6);
    span("head", at + 8, 1);
    events.push_back({{"ph", "b"}, {"id", i}, {"ts", 1e3 * (at + 1)}, {"args", {{"why", "demand"}}}});
    events.push_back({{"ph", "e"}, {"id", i}, {"ts", 1e3 * (at + 6)}});
  }
  return Json{{"traceEvents", events}}.dump();
}

TEST(BatchTimelines, AreWholeIterations) {
  const auto timeline = timeline_of_batch_trace(trace_of(5), {"d", "1G", 2, 1}, 2, 2);
  ASSERT_TRUE(timeline.ok()) << timeline.status().message();
  EXPECT_EQ(timeline->begins_ms, (std::vector<double>{0, 10}));
  EXPECT_DOUBLE_EQ(timeline->length_ms, 19);  // from the first one's draft to the second one's choices
  EXPECT_EQ(timeline->draft, (TimeSpans{{0, 2}, {10, 2}}));
  EXPECT_EQ(timeline->attention, (TimeSpans{{2, 1}, {12, 1}}));
  EXPECT_EQ(timeline->stall, (TimeSpans{{4, 2}, {14, 2}}));
  EXPECT_EQ(timeline->experts, (TimeSpans{{3, 1}, {6, 2}, {13, 1}, {16, 2}}));
  EXPECT_EQ(timeline->head, (TimeSpans{{8, 1}, {18, 1}}));
  EXPECT_EQ(timeline->reads, (TimeSpans{{1, 5}, {11, 5}}));
  EXPECT_EQ(timeline_of_batch_trace(trace_of(5), {}, 4, 1)->length_ms, 9);
  EXPECT_EQ(timeline_of_batch_trace(trace_of(5), {}, 4, 2).status().kind(), StatusKind::kFile);
  for (const char* bad : {"", "{}", "{\"traceEvents\":[]}", "{\"traceEvents\":[{\"ph\":\"X\",\"name\":3}]}"}) {
    EXPECT_EQ(timeline_of_batch_trace(bad, {}, 0, 1).status().kind(), StatusKind::kFile) << bad;
  }
}

TEST(BatchReports, HoldTheFiguresAndNothingElseIsNeeded) {
  std::vector<BatchBenchRun> runs;
  for (const int64_t sequences : {2, 8}) {
    for (const char* contender : {"no draft", "depth 16", "depth 4", "depth auto"}) {
      runs.push_back(a_run(contender, sequences, 1, static_cast<double>(10 * sequences)));
    }
  }
  for (BatchBenchRun run : std::vector<BatchBenchRun>(runs)) {
    run.key.budget = "2G";
    runs.push_back(run);
  }
  const auto timeline = timeline_of_batch_trace(trace_of(3), runs[3].key, 1, 2);
  const std::string html = html_report({runs, {*timeline}, false});
  for (const char* title : {"Tokens per second by depth, 1G", "Tokens per second by requests at once, 2G",
                            "Tokens per second by memory, 8 at once", "Predicted against measured",
                            "An iteration, part by part: depth auto, 2 at once", "What happens when"}) {
    EXPECT_NE(html.find(title), std::string::npos) << title;
  }
  EXPECT_NE(html.find("400 / 300"), std::string::npos);
  EXPECT_NE(html.find("-25 %"), std::string::npos);
  EXPECT_NE(html.find("auto drafted on average 2.5 with 2 at once"), std::string::npos);
  EXPECT_LT(html.find(">4</text>"), html.find(">16</text>"));  // numbers in their order
  EXPECT_EQ(html.find("<m>"), std::string::npos);
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_NE(html_report({}).find("No run has ended"), std::string::npos);
  // Depths that nobody asked for, in a file from elsewhere.
  runs[1].depth = "99999999999999999999";
  runs[2].depth = "</svg>";
  EXPECT_EQ(html_report({runs, {}, false}).find("</svg></"), std::string::npos);
}

}  // namespace
}  // namespace drafthorse::cli
