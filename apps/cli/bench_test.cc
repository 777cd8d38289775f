// The pure parts of `drafthorse bench`: statistics, suites, the file of runs, plots.
#include <gtest/gtest.h>

#include <algorithm>

#include "bench_prompts.h"
#include "bench_report.h"
#include "bench_runs.h"
#include "bench_suite.h"
#include "sample_statistics.h"
#include "svg_plot.h"

namespace drafthorse::cli {
namespace {

TEST(SampleStatistics, Median) {
  EXPECT_EQ(median({3}), 3);
  EXPECT_EQ(median({5, 1, 4}), 4);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
  EXPECT_EQ(median({7, 7, 1, 7}), 7);
}

TEST(SampleStatistics, Range) {
  const Spread of_many = spread({4, -1, 9});
  EXPECT_EQ(of_many.median, 4);
  EXPECT_EQ(of_many.low, -1);
  EXPECT_EQ(of_many.high, 9);
  EXPECT_EQ(spread({}).median, 0);
}

TEST(SampleStatistics, GeometricMean) {
  EXPECT_DOUBLE_EQ(geometric_mean({2, 8}), 4);
  EXPECT_DOUBLE_EQ(geometric_mean({0.5, 2}), 1);  // the arithmetic one would favour whoever is lucky once
  EXPECT_DOUBLE_EQ(geometric_mean({3}), 3);
}

BenchRequest with_draft() {
  BenchRequest request;
  request.has_draft = true;
  request.moe_layers = 4;
  return request;
}

std::vector<std::string> names(const Suite& suite) {
  std::vector<std::string> out;
  for (const Contender& contender : suite.contenders) out.push_back(contender.name);
  return out;
}

TEST(Suites, EachHasItsFigureAndNamesThatDiffer) {
  BenchRequest request = with_draft();
  request.suites = {"all"};
  const auto suites = plan_suites(request);
  ASSERT_TRUE(suites.ok());
  ASSERT_EQ(suites->size(), 5U);
  for (const Suite& suite : *suites) {
    EXPECT_EQ(suite.name, name_of(suite.figure));
    std::vector<std::string> all = names(suite);
    EXPECT_EQ(all.front(), suite.baseline);
    std::sort(all.begin(), all.end());
    EXPECT_EQ(std::unique(all.begin(), all.end()), all.end()) << suite.name;
  }
}

TEST(Suites, AblationEndsAsTheDefaultPolicy) {
  BenchRequest request = with_draft();
  request.suites = {"ablation"};
  const auto suites = plan_suites(request);
  ASSERT_TRUE(suites.ok());
  const std::vector<Contender>& steps = suites->front().contenders;
  const std::vector<std::string> first = {"--policy",   "auto",      "--predictor",     "none", "--prefetch",    "none",
                                          "--eviction", "lru-layer", "--batched-reads", "off",  "--draft-depth", "4"};
  EXPECT_EQ(steps.front().flags(), first);
  const std::vector<std::string> last = {"--policy",   "auto",     "--predictor", "combined",
                                         "--prefetch", "deadline", "--eviction",  "draft-guided"};
  EXPECT_EQ(steps.back().flags(), last);
}

TEST(Suites, CutoffsAreThinnedOut) {
  BenchRequest request = with_draft();
  request.suites = {"cutoff"};
  EXPECT_EQ(names(plan_suites(request)->front()),
            (std::vector<std::string>{"L = 0", "L = 1", "L = 2", "L = 3", "L = 4", "L = auto"}));
  request.moe_layers = 48;
  const std::vector<std::string> many = names(plan_suites(request)->front());
  EXPECT_EQ(many.size(), 10U);
  EXPECT_EQ(many[8], "L = 48");
}

TEST(Suites, WhatTheUserSaysWins) {
  BenchRequest request = with_draft();
  request.policies = {"sp-moe", "auto"};
  request.depths = {"0", "off"};
  request.budgets = {"1G"};
  request.baseline = "auto, no draft";
  const auto suites = plan_suites(request);
  ASSERT_TRUE(suites.ok());
  EXPECT_EQ(names(suites->front()),
            (std::vector<std::string>{"sp-moe, depth 0", "sp-moe, no draft", "auto, depth 0", "auto, no draft"}));
  EXPECT_EQ(suites->front().budgets, std::vector<std::string>{"1G"});
  EXPECT_EQ(suites->front().baseline, "auto, no draft");
}

TEST(Suites, WhatMakesNoSenseIsRefused) {
  const auto refused = [](auto change) {
    BenchRequest request = with_draft();
    change(request);
    return plan_suites(request).status().kind() == StatusKind::kUsage;
  };
  EXPECT_TRUE(refused([](auto& r) { r.suites = {"everything"}; }));
  EXPECT_TRUE(refused([](auto& r) { r.policies = {"sp-mo"}; }));
  EXPECT_TRUE(refused([](auto& r) { r.depths = {"-1"}; }));
  EXPECT_TRUE(refused([](auto& r) { r.depths = {"4x"}; }));
  EXPECT_TRUE(refused([](auto& r) { r.cutoffs = {"off"}; }));
  EXPECT_TRUE(refused([](auto& r) { r.baseline = "nobody"; }));
  EXPECT_TRUE(refused([](auto& r) {
    r.has_draft = false;
    r.suites = {"ablation"};
  }));
  EXPECT_FALSE(refused([](auto&) {}));
}

TEST(Suites, Percentages) {
  EXPECT_EQ(parse_percent("35%"), 35);
  EXPECT_EQ(parse_percent("0.5%"), 0.5);
  EXPECT_EQ(parse_percent("100%"), 100);
  for (const char* none : {"", "%", "35", "0%", "101%", "-5%", "nan%", "3 5%", "1G"}) {
    EXPECT_LT(parse_percent(none), 0) << none;
  }
}

TEST(Prompts, AreReadAndSpreadOut) {
  const auto prompts = parse_prompts("{\"id\": \"a\", \"text\": \"x\"}\n\n{\"text\": \"y\"}", "p");
  ASSERT_TRUE(prompts.ok());
  ASSERT_EQ(prompts->size(), 2U);
  EXPECT_EQ((*prompts)[0].id, "a");
  EXPECT_EQ((*prompts)[1].id, "3");
  EXPECT_EQ(spread_out(*prompts, 9).size(), 2U);
  const auto six = own_prompts();
  EXPECT_EQ(spread_out(six, 2)[1].id, six[3].id);
  for (const char* bad : {"", "x", "[]", "{\"text\": 3}", "{\"text\": \"\"}",
                          "{\"id\":\"a\",\"text\":\"x\"}\n{\"id\":\"a\",\"text\":\"y\"}"}) {
    EXPECT_EQ(parse_prompts(bad, "p").status().kind(), StatusKind::kFile) << bad;
  }
}

BenchRun a_run(const std::string& contender, const std::string& prompt, int round, double tpot_s) {
  BenchRun run;
  run.key = {"policies", contender, "50%", prompt, round};
  run.figure = "policies";
  run.title = "policies";
  run.baseline = "on-demand";
  run.policy = contender;
  run.depth = "4";
  run.cutoff = "auto";
  run.model = "m.gguf";
  run.drafter = "auto";
  run.tokens = 8;
  run.generated_tokens = 8;
  run.tpot_s = tpot_s;
  run.slots = 5;
  run.experts = 10;
  run.hit_rate_by_layer = {0.5, -1};
  run.text_hash = "h";
  return run;
}

std::string lines(const std::vector<BenchRun>& runs) {
  std::string text;
  for (const BenchRun& run : runs) text += json_line(to_json(run)) + '\n';
  return text;
}

TEST(Runs, ComeBackFromTheFile) {
  BenchRun run = a_run("auto", "p", 1, 0.25);
  run.cutoff_layers = 2.5;
  BenchTimeline timeline{run.key, 3, {{0, 1}}, {{1, 2}}, {}, {}, {{0.5, 0.25}}};
  const std::string text = lines({run}) + json_line(to_json(timeline)) + '\n';
  const auto file = parse_bench_file(text, "f");
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_EQ(file->runs.size(), 1U);
  EXPECT_EQ(json_line(to_json(file->runs[0])), json_line(to_json(run)));
  ASSERT_EQ(file->timelines.size(), 1U);
  EXPECT_EQ(json_line(to_json(file->timelines[0])), json_line(to_json(timeline)));
  EXPECT_FALSE(file->last_line_cut);
}

TEST(Runs, ACutLastLineIsForgottenAndOthersAreNot) {
  const std::string text = lines({a_run("auto", "p", 1, 0.25), a_run("auto", "p", 2, 0.25)});
  const auto cut = parse_bench_file(text.substr(0, text.size() - 20), "f");
  ASSERT_TRUE(cut.ok());
  EXPECT_TRUE(cut->last_line_cut);
  EXPECT_EQ(cut->runs.size(), 1U);
  EXPECT_EQ(parse_bench_file(text.substr(20), "f").status().kind(), StatusKind::kFile);
  EXPECT_EQ(parse_bench_file("{}\n", "f").status().kind(), StatusKind::kFile);
  EXPECT_EQ(parse_bench_file("{\"kind\":\"run\",\"suite\":3}\n", "f").status().kind(), StatusKind::kFile);
}

TEST(Runs, AreHeldAgainstTheBaselineOfTheSamePair) {
  // The second prompt takes twice as long for all: pairs do not see that.
  const std::vector<BenchRun> runs = {a_run("on-demand", "p", 1, 0.2), a_run("auto", "p", 1, 0.1),
                                      a_run("on-demand", "q", 1, 0.8), a_run("auto", "q", 1, 0.1),
                                      a_run("auto", "r", 1, 0.3)};
  const auto suites = summarise(runs);
  ASSERT_EQ(suites.size(), 1U);
  const Summary* row = suites[0].find("auto", "50%");
  ASSERT_NE(row, nullptr);
  EXPECT_EQ(row->runs, 3U);
  EXPECT_EQ(row->tpot_s.median, 0.1);
  EXPECT_EQ(row->speed.low, 2);
  EXPECT_EQ(row->speed.high, 8);
  EXPECT_DOUBLE_EQ(row->mean_speed, 4);
  EXPECT_DOUBLE_EQ(suites[0].find("on-demand", "50%")->mean_speed, 1);
}

TEST(Runs, DifferingTextsAreNamed) {
  std::vector<BenchRun> runs = {a_run("on-demand", "p", 1, 0.2), a_run("auto", "p", 1, 0.1), a_run("auto", "q", 1, 1)};
  runs[2].text_hash = "another";  // of another prompt: no matter
  EXPECT_TRUE(differing_texts(runs).empty());
  runs[1].text_hash = "another";
  ASSERT_EQ(differing_texts(runs).size(), 1U);
  EXPECT_NE(differing_texts(runs)[0].find("'auto'"), std::string::npos);
  EXPECT_NE(html_report({runs, {}, false}).find("class=\"error\""), std::string::npos);
}

TEST(Runs, TableFitsTheTerminal) {
  std::vector<BenchRun> runs = {a_run("on-demand", "p", 1, 12.3456),
                                a_run("+ prefetching, drafting waits", "p", 1, 99.9)};
  const std::string text = table(summarise(runs)[0]);
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    EXPECT_LE(end - at, 100U) << text.substr(at, end - at);
    at = end + 1;
  }
}

TEST(Timeline, IsTheMiddleOfTheTrace) {
  std::string events = R"({"ph":"M","name":"process_name","args":{"name":"x"}})";
  for (int i = 0; i < 10; ++i) {
    events += R"(,{"ph":"X","name":"verify","ts":)" + std::to_string(i * 1000) + R"(,"dur":900})";
  }
  events += R"(,{"ph":"b","id":7,"name":"e","ts":5100,"args":{"why":"demand"}},{"ph":"e","id":7,"name":"e","ts":5300})";
  const auto timeline = timeline_of_trace("{\"traceEvents\":[" + events + "]}", {}, 3);
  ASSERT_TRUE(timeline.ok()) << timeline.status().message();
  EXPECT_EQ(timeline->length_ms, 3);
  EXPECT_EQ(timeline->verify, (TimeSpans{{0, 0.9}, {1, 0.9}, {2, 0.9}}));  // from 3 ms on
  EXPECT_EQ(timeline->demand_reads, (TimeSpans{{2.1, 0.2}}));
  for (const char* bad : {"", "{}", "{\"traceEvents\":[]}", "{\"traceEvents\":[{\"ph\":\"X\",\"name\":3}]}"}) {
    EXPECT_EQ(timeline_of_trace(bad, {}, 3).status().kind(), StatusKind::kFile) << bad;
  }
}

TEST(Plots, WhatIsDrawnCanBeRead) {
  const std::string bars = bar_chart({{"50%", {{"<auto> & \"co\"", {12.5, 10, 15}, "1.5x", true}}}}, "ms");
  EXPECT_NE(bars.find("&lt;auto&gt; &amp; &quot;co&quot;: 12.5 (10.0 to 15.0) ms"), std::string::npos) << bars;
  EXPECT_EQ(bars.find("<auto>"), std::string::npos);
  LineChart chart{{"0", "1"}, "x", "y", {{"a", {{0, {3, 2, 4}}, {1, {30, 20, 40}}}}}, {{0.5, 7, "chosen", 0}}};
  const std::string drawn = line_chart(chart);
  EXPECT_NE(drawn.find("a at 1: 30.0 (20.0 to 40.0)"), std::string::npos) << drawn;
  EXPECT_NE(drawn.find("chosen"), std::string::npos);
  const std::string shades = heat_map({{"r"}, {"0", "1"}, "layer", {{0.25, -1}}});
  EXPECT_NE(shades.find("r, layer 0: 25.0 %"), std::string::npos) << shades;
  EXPECT_NE(shades.find("nothing to show"), std::string::npos);
}

TEST(Plots, NothingAtAllIsNoReasonToFail) {
  EXPECT_NE(html_report({}).find("No run has ended"), std::string::npos);
  for (const std::string& svg : {bar_chart({}, "ms"), line_chart({}), heat_map({}), lanes_chart({}, 1)}) {
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
  }
}

}  // namespace
}  // namespace drafthorse::cli
