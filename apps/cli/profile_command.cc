#include "profile_command.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/units.h"
#include "console.h"
#include "folders.h"
#include "output.h"
#include "profile/measure.h"
#include "profile_file.h"
#include "profile_json.h"

namespace drafthorse::cli {
namespace {

constexpr uint64_t kScratchBytes = kGiB;
constexpr uint64_t kLeftFree = kGiB;

// A file to read, without a name from the start: whatever ends this process, nothing is left behind.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Status create(const std::string& folder, Console& console) {
    struct statvfs space {};
    if (statvfs(folder.c_str(), &space) == 0 && space.f_bavail * space.f_frsize < kScratchBytes + kLeftFree) {
      return file_error(
          fmt::format("{}: too little space for a scratch file of {}; give a large file to read instead "
                      "(drafthorse profile FILE)",
                      folder, format_size(kScratchBytes)));
    }
    std::string name = folder + "/profile-scratch-XXXXXX";
    descriptor_ = mkstemp(name.data());
    if (descriptor_ < 0) return file_error(fmt::format("{}: a scratch file cannot be made there", folder));
    unlink(name.c_str());
    // Something no storage compresses away.
    std::vector<uint64_t> block(kMiB / sizeof(uint64_t));
    uint64_t state = 0x9E3779B97F4A7C15ULL;
    for (uint64_t done = 0; done < kScratchBytes; done += kMiB) {
      for (uint64_t& word : block) word = state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      if (write(descriptor_, block.data(), kMiB) != static_cast<ssize_t>(kMiB)) {
        return file_error(fmt::format("{}: writing a scratch file failed; is the disk full?", folder));
      }
      console.progress("writing a scratch file", static_cast<double>(done) / static_cast<double>(kScratchBytes));
    }
    if (fsync(descriptor_) != 0) return file_error(fmt::format("{}: writing a scratch file failed", folder));
    return {};
  }
  std::string path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }

 private:
  int descriptor_ = -1;
};

Result<MachineProfile> measure(const ProfileFlags& flags, const std::string& folder, Console& console) {
  MeasureOptions options;
  options.threads = flags.threads;
  options.types = flags.types;
  options.seconds = flags.seconds;
  options.disk_file = flags.file;
  Scratch scratch;
  if (flags.file.empty()) {
    RETURN_IF_ERROR(scratch.create(folder, console));
    options.disk_file = scratch.path();
  }
  ASSIGN_OR_RETURN(MachineProfile profile,
                   measure_machine(options, [&](std::string_view what, double part) { console.progress(what, part); }));
  if (flags.file.empty()) profile.disk_file = folder;
  return profile;
}

std::string rate_text(double bytes_per_s) { return fmt::format("{:.2f} GB/s", bytes_per_s / 1e9); }

std::string profile_text(const MachineProfile& profile, const std::string& path) {
  std::string text = fmt::format("{}\n\ndisk, random reads of {}{}\n", profile.machine, profile.disk_file,
                                 profile.direct_io ? "" : " (through the page cache: no O_DIRECT here)");
  std::vector<int> depths;
  for (const DiskRate& rate : profile.disk) {
    if (std::find(depths.begin(), depths.end(), rate.in_flight) == depths.end()) depths.push_back(rate.in_flight);
  }
  text += fmt::format("  {:>10}", "in flight");
  for (const int depth : depths) text += fmt::format(" {:>10}", depth);
  uint64_t row = 0;
  for (const DiskRate& rate : profile.disk) {
    if (rate.read_bytes != row) text += fmt::format("\n  {:>10}", format_size(row = rate.read_bytes));
    text += fmt::format(" {:>10}", rate_text(rate.bytes_per_s));
  }
  text += fmt::format(
      "\n  one read of 4 KiB takes {:.0f} us; streaming gives {}, beside computing {}, which it slows down to "
      "1/{:.2f}\n"
      "\nmemory   {} read by {} threads\n",
      profile.disk_latency_s * 1e6, rate_text(profile.stream_bytes_per_s),
      rate_text(profile.stream_bytes_per_s_while_computing), profile.compute_slowdown_while_reading,
      rate_text(profile.ram_bytes_per_s), profile.threads);
  text += fmt::format("products {:.0f} G/s of bytes, {:.0f} G/s of floats per core\n",
                      profile.byte_products_per_s / 1e9, profile.float_products_per_s / 1e9);
  text += "\nexperts, speed through the weights by tokens that share them (weights from memory)\n  type      ";
  if (!profile.kernels.empty()) {
    for (const KernelRate& rate : profile.kernels.front().experts) text += fmt::format(" {:>9}", rate.tokens);
  }
  for (const KernelProfile& kernel : profile.kernels) {
    text += fmt::format("\n  {:<10}", kernel.type);
    for (const KernelRate& rate : kernel.experts) {
      text += fmt::format(" {:>4.1f} GB/s", kernel.bytes_per_weight / rate.seconds_per_weight / 1e9);
    }
  }
  return text + fmt::format("\n\nkept in {}\n", path);
}

// What the user should know of a disk that changed meanwhile; empty: it did not.
std::string unsteady(const MachineProfile& profile) {
  constexpr double kMuch = 1.3;
  const double first = profile.disk.back().bytes_per_s;
  const double last = profile.disk_bytes_per_s_at_the_end;
  if (std::max(first, last) < kMuch * std::min(first, last)) return {};
  return fmt::format(
      "note: large reads gave {} at first and {} at the end: something else used the disk (what was just written, "
      "perhaps), or it slows down by and by; predictions hold for a disk as it was at first, so measure again in quiet",
      rate_text(first), rate_text(last));
}

}  // namespace

CLI::App* add_profile_command(CLI::App& app, ProfileFlags& flags) {
  CLI::App* profile = app.add_subcommand("profile", "Measure disk, memory and kernels of this machine, once, for plan");
  profile
      ->add_option("FILE", flags.file,
                   "a large file to read, best the model's own; default: a scratch file of 1 GiB in the cache folder, "
                   "removed afterwards (a file just written may be read faster than others)")
      ->type_name("")
      ->check(check_not_empty);
  profile->add_option("--threads", flags.threads, "threads to compute with; default: one per core")
      ->type_name("N")
      ->check(CLI::Range(1, 512));
  profile->add_option("--types", flags.types, "weight types to measure, such as q4_K,f32; default: all")
      ->type_name("T,..")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(check_not_empty);
  profile->add_option("--seconds", flags.seconds, "time for each disk figure; less is quicker and less exact")
      ->type_name("S")
      ->check(CLI::Range(0.001, 60.0))
      ->capture_default_str();
  profile->add_flag("--json", flags.json, "print JSON");
  return profile;
}

int profile(const ProfileFlags& flags) {
  Console console;
  const Result<std::string> path = profile_path();
  if (!path.ok()) return fail(console, path.status());
  const Result<MachineProfile> measured = measure(flags, cache_folder(), console);
  console.end_progress();
  if (!measured.ok()) return fail(console, measured.status());
  if (const std::string note = unsteady(*measured); !note.empty()) console.line(note);
  Status status = save_profile(*measured, *path);
  if (status.ok())
    status = write_output(flags.json ? json_text(profile_json(*measured)) : profile_text(*measured, *path));
  return status.ok() ? 0 : fail(console, status);
}

}  // namespace drafthorse::cli
