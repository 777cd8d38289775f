#include "bench_setup.h"

#include <fmt/format.h>

#include "bench_command.h"
#include "bench_folder.h"
#include "output.h"

namespace drafthorse::cli {
namespace {

// Some drafters need no model.
bool drafts_without_model(const BenchSetup& setup) { return setup.drafter == "ngram" || setup.drafter == "resident"; }

}  // namespace

BenchSetup setup_of(const BenchFlags& flags) {
  BenchSetup setup;
  setup.target = flags.target;
  setup.draft = flags.draft;
  setup.drafter = flags.drafter;
  setup.context = flags.context;
  setup.threads = flags.threads;
  setup.io = flags.io;
  setup.kv = flags.kv;
  setup.folder = flags.out;
  setup.resume = flags.resume;
  setup.command_line = flags.command_line;
  return setup;
}

std::string draft_file(const BenchSetup& setup, bool drafts) {
  return !drafts || drafts_without_model(setup) ? "" : setup.draft;
}

bool can_draft(const BenchSetup& setup) { return !setup.draft.empty() || drafts_without_model(setup); }

EngineOptions engine_options(const BenchSetup& setup, bool drafts, uint64_t ram_bytes) {
  EngineOptions options;
  options.target_path = setup.target;
  options.draft_path = draft_file(setup, drafts);
  options.drafter = drafts ? setup.drafter : "none";
  options.ram_bytes = ram_bytes;
  if (setup.context > 0) options.context = setup.context;
  options.threads = setup.threads;
  options.io = setup.io;
  options.kv_type = setup.kv;
  return options;
}

std::vector<std::string> arguments_of(const BenchSetup& setup, const std::string& command, bool drafts,
                                      uint64_t ram_bytes) {
  std::vector<std::string> out = {"--no-config", command, "-m", setup.target};
  const auto add = [&](std::initializer_list<std::string> words) { out.insert(out.end(), words); };
  if (const std::string draft = draft_file(setup, drafts); !draft.empty()) add({"-d", draft});
  add({"--drafter", drafts ? setup.drafter : "none", "--ram", std::to_string(ram_bytes), "--ignore-eos", "--quiet"});
  if (setup.context > 0) add({"--ctx", std::to_string(setup.context)});
  if (setup.threads > 0) add({"--threads", std::to_string(setup.threads)});
  if (setup.io != "uring") add({"--io", setup.io});
  if (setup.kv != "f16") add({"--kv", setup.kv});
  return out;
}

int show_results(Console& console, const std::string& folder, const std::string& html, const std::string& table,
                 const std::vector<std::string>& different, std::string_view what) {
  Status status = write_report(folder, html);
  if (status.ok()) status = write_output(table);
  if (!status.ok()) return fail(console, status);
  console.line(fmt::format("report: {}", report_path(folder)));
  if (different.empty()) return 0;
  for (const std::string& one : different) console.error("drafthorse: TEXTS DIFFER: " + printable(one));
  return fail(console,
              runtime_error(fmt::format("texts of one {} differ between contenders, which must never happen; please "
                                        "report it",
                                        what)));
}

int end_bench(Console& console, const std::string& folder, const Status& ran, bool anything,
              const std::function<int()>& show) {
  if (ran.kind() == StatusKind::kInterrupted) {
    console.line(fmt::format("interrupted; go on with --resume --out {}", folder));
  } else if (!ran.ok()) {
    fail(console, ran);
  }
  const int shown = anything ? show() : 0;
  return shown != 0 ? shown : static_cast<int>(ran.kind());
}

}  // namespace drafthorse::cli
