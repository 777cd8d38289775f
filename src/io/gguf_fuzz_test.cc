// Damaged files: whatever the damage, open() and check_vocabulary() answer, and what they accept libllama survives.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "io/gguf_index.h"
#include "io/testing/gguf_builder.h"
#include "io/testing/libllama_vocabulary.h"
#include "io/testing/temporary_file.h"

namespace drafthorse {
namespace {

constexpr int kMutations = 2'000;
// The damaged files have at most a few hundred KB; the rest is room for sanitizers.
constexpr long kMaxGrowthKib = 600 * 1024;

// Other damage than always: --gtest_shuffle --gtest_random_seed=N.
uint64_t base_seed() { return static_cast<uint64_t>(::testing::UnitTest::GetInstance()->random_seed()) + 1; }

long peak_memory_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  // One to three injuries.
  void damage(Bytes& bytes) {
    for (uint64_t n = 1 + below(3); n > 0 && bytes.size() > 16; --n) damage_once(bytes);
  }

 private:
  uint64_t below(uint64_t limit) { return random_() % limit; }

  // A third of all damage goes where the counts and the first keys are.
  size_t place(const Bytes& bytes, size_t length) {
    const size_t last = bytes.size() - length;
    return static_cast<size_t>(below(below(3) == 0 ? std::min<size_t>(last + 1, 1'500) : last + 1));
  }

  void damage_once(Bytes& bytes) {
    const uint64_t kind = below(16);
    if (kind < 4) {
      bytes[place(bytes, 1)] ^= static_cast<std::byte>(1U << below(8));
    } else if (kind < 6) {
      bytes[place(bytes, 1)] = static_cast<std::byte>(below(256));
    } else if (kind == 6) {
      overwrite(bytes, below(2) == 0 ? random_() : uint64_t{1} << below(64));
    } else if (kind == 7) {
      overwrite(bytes, static_cast<uint32_t>(below(40)));
    } else if (kind == 8) {
      overwrite(bytes, below(300));
    } else if (kind < 14) {
      copy_within(bytes);
    } else if (kind == 14) {
      bytes.resize(1 + static_cast<size_t>(below(bytes.size())));
    } else {
      const Bytes inserted(static_cast<size_t>(1 + below(16)), static_cast<std::byte>(below(256)));
      bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(place(bytes, 1)), inserted.begin(), inserted.end());
    }
  }

  // Makes twins: of keys, tokens, names.
  void copy_within(Bytes& bytes) {
    const size_t length = 1 + static_cast<size_t>(below(std::min<size_t>(bytes.size() / 2, below(2) == 0 ? 3 : 24)));
    const size_t from = place(bytes, length);
    const size_t to = place(bytes, length);
    std::memmove(bytes.data() + to, bytes.data() + from, length);
  }

  template <typename T>
  void overwrite(Bytes& bytes, T value) {
    std::memcpy(bytes.data() + place(bytes, sizeof(T)), &value, sizeof(T));
  }

  std::mt19937_64 random_;
};

struct Outcome {
  int opened = 0;
  int accepted = 0;
  int loaded = 0;
};

// `header` damaged again and again, followed by zeros up to `file_bytes`.
Outcome damage_many_times(const Bytes& header, uint64_t file_bytes) {
  // A crash leaves the file behind.
  const TemporaryFile file(temporary_path("damaged.gguf"));
  Outcome outcome;
  for (int i = 0; i < kMutations; ++i) {
    SCOPED_TRACE(::testing::Message() << "seed " << base_seed() << ", mutation " << i);
    Bytes bytes = header;
    Mutator(base_seed() * 1'000'003 + static_cast<uint64_t>(i)).damage(bytes);
    const bool cut = bytes.size() + 64 < header.size();
    file.write(bytes);
    if (!cut && file_bytes > bytes.size()) {
      EXPECT_EQ(::truncate(file.path().c_str(), static_cast<off_t>(file_bytes)), 0);
    }
    const Result<GgufIndex> index = GgufIndex::open(file.path());
    if (!index.ok()) {
      EXPECT_NE(index.status().message().find(file.path()), std::string::npos) << index.status().message();
      continue;
    }
    ++outcome.opened;
    const Status vocabulary = check_vocabulary(*index);
    if (!vocabulary.ok()) {
      EXPECT_NE(vocabulary.message().find(file.path()), std::string::npos) << vocabulary.message();
      continue;
    }
    ++outcome.accepted;
    outcome.loaded += loads_in_libllama(file.path());
  }
  return outcome;
}

void expect_robust(const Bytes& header, uint64_t file_bytes) {
  ::testing::Test::RecordProperty("seed", static_cast<int>(base_seed()));
  const long before_kib = peak_memory_kib();
  const Outcome outcome = damage_many_times(header, file_bytes);
  EXPECT_LT(peak_memory_kib() - before_kib, kMaxGrowthKib);
  ::testing::Test::RecordProperty("opened", outcome.opened);
  ::testing::Test::RecordProperty("accepted", outcome.accepted);
  ::testing::Test::RecordProperty("loaded", outcome.loaded);
  // All refused, or none, would mean that the damage tests nothing.
  EXPECT_GT(outcome.opened, kMutations / 50);
  EXPECT_LT(outcome.opened, kMutations);
  EXPECT_GT(outcome.loaded, 0);
}

Bytes model_with(const TestVocabulary& vocabulary) {
  GgufBuilder builder;
  builder.set("general.architecture", "llama");
  builder.set("general.name", "test");
  builder.set("general.alignment", uint32_t{32});
  vocabulary.write(builder);
  builder.add_tensor("token_embd.weight", GGML_TYPE_F16, {64, 10});
  builder.add_tensor("blk.0.ffn_gate_exps.weight", GGML_TYPE_Q4_0, {64, 32, 4});
  builder.add_tensor("output_norm.weight", GGML_TYPE_F32, {64});
  return builder.build();
}

TEST(GgufFuzzTest, BytePairModel) {
  const Bytes model = model_with(byte_level_vocabulary());
  expect_robust(model, model.size());
}

TEST(GgufFuzzTest, SentencePieceModel) {
  const Bytes model = model_with(sentencepiece_vocabulary());
  expect_robust(model, model.size());
}

TEST(GgufFuzzTest, DemoModel) {
  const std::string path = DRAFTHORSE_SOURCE_DIR "/models/mixtral/target.gguf";
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  ASSERT_TRUE(file) << path << " is not there";
  const auto file_bytes = static_cast<uint64_t>(file.tellg());
  Bytes header(200 * 1024);
  file.seekg(0);
  file.read(reinterpret_cast<char*>(header.data()), static_cast<std::streamsize>(header.size()));
  ASSERT_TRUE(file.good());
  expect_robust(header, file_bytes);
}

}  // namespace
}  // namespace drafthorse
