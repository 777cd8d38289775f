#include "io/gguf_index.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "io/testing/gguf_builder.h"
#include "io/testing/temporary_file.h"

namespace drafthorse {
namespace {

GgufBuilder small_model() {
  GgufBuilder builder;
  builder.set("general.architecture", "llama");
  builder.set("llama.block_count", uint32_t{2});
  builder.add_tensor("token_embd.weight", GGML_TYPE_F16, {64, 10});
  builder.add_tensor("blk.0.ffn_gate_exps.weight", GGML_TYPE_Q4_0, {64, 32, 4});
  builder.add_tensor("output_norm.weight", GGML_TYPE_F32, {64});
  return builder;
}

// Opens it and expects a kFile error with the file's name and `part` in it.
void expect_refused(const Bytes& bytes, const std::string& part) {
  const TemporaryFile file(temporary_path("bad.gguf"), bytes);
  const Result<GgufIndex> index = GgufIndex::open(file.path());
  ASSERT_FALSE(index.ok()) << "expected: " << part;
  EXPECT_EQ(index.status().kind(), StatusKind::kFile);
  EXPECT_NE(index.status().message().find(file.path()), std::string::npos) << index.status().message();
  EXPECT_NE(index.status().message().find(part), std::string::npos) << index.status().message();
}

void expect_refused(const GgufBuilder& builder, const std::string& part) { expect_refused(builder.build(), part); }

TEST(GgufIndexTest, FindsTensors) {
  for (const uint32_t version : {2U, 3U}) {
    GgufBuilder builder = small_model();
    builder.version = version;
    const Bytes bytes = builder.build();
    const TemporaryFile file(temporary_path("good.gguf"), bytes);
    const Result<GgufIndex> index = GgufIndex::open(file.path());
    ASSERT_TRUE(index.ok()) << index.status().message();
    ASSERT_EQ(index->files().size(), 1U);
    EXPECT_EQ(index->files()[0].bytes, bytes.size());
    ASSERT_EQ(index->tensors().size(), 3U);
    const TensorInfo* experts = index->find("blk.0.ffn_gate_exps.weight");
    ASSERT_NE(experts, nullptr);
    EXPECT_EQ(experts->type, GGML_TYPE_Q4_0);
    EXPECT_EQ(experts->n_dims, 3);
    EXPECT_EQ(experts->ne[0], 64);
    EXPECT_EQ(experts->ne[2], 4);
    EXPECT_EQ(experts->ne[3], 1);
    EXPECT_EQ(experts->bytes, 64U * 32 * 4 / 32 * 18);
    EXPECT_EQ(experts->offset % 32, 0U);
    EXPECT_EQ(experts->offset, index->find("token_embd.weight")->offset + 64 * 10 * 2);
    EXPECT_EQ(index->tensor_bytes(), 64U * 10 * 2 + 64U * 32 * 4 / 32 * 18 + 64 * 4);
    EXPECT_EQ(index->find("nothing"), nullptr);
  }
}

TEST(GgufIndexTest, ReadsEveryKindOfValue) {
  GgufBuilder builder;
  builder.set("u8", uint8_t{200});
  builder.set("i8", int8_t{-5});
  builder.set("u16", uint16_t{60'000});
  builder.set("i16", int16_t{-300});
  builder.set("u32", uint32_t{4'000'000'000});
  builder.set("i32", int32_t{7});
  builder.set("u64", std::numeric_limits<uint64_t>::max());
  builder.set("i64", std::numeric_limits<int64_t>::min());
  builder.set("f32", 0.5F);
  builder.set("f64", 0.25);
  builder.set("yes", true);
  builder.set("text", "some \u00e4 text");
  builder.set_array<int8_t>("i8s", {1, -2});
  builder.set_array<uint16_t>("u16s", {65'535});
  builder.set_array<float>("f32s", {1.5F});
  builder.set_array<bool>("bools", {true, false});
  builder.set_array<uint32_t>("none", {});
  builder.set_strings("texts", {"", "b"});
  const TemporaryFile file(temporary_path("values.gguf"), builder.build());
  const Result<GgufIndex> opened = GgufIndex::open(file.path());
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const GgufIndex& index = *opened;
  EXPECT_EQ(index.get_u64("u8"), 200U);
  EXPECT_EQ(index.get_u64("u16"), 60'000U);
  EXPECT_EQ(index.get_u64("u32"), 4'000'000'000U);
  EXPECT_EQ(index.get_u64("i32"), 7U);
  EXPECT_EQ(index.get_u64("u64"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(index.get_u64("i8"), std::nullopt);
  EXPECT_EQ(index.get_u64("f32"), std::nullopt);
  EXPECT_EQ(index.get_u64("missing"), std::nullopt);
  EXPECT_EQ(index.get_f64("i16"), -300.0);
  EXPECT_EQ(index.get_f64("f32"), 0.5);
  EXPECT_EQ(index.get_f64("f64"), 0.25);
  EXPECT_EQ(index.get_f64("text"), std::nullopt);
  EXPECT_EQ(index.get_bool("yes"), true);
  EXPECT_EQ(index.get_bool("u8"), std::nullopt);
  ASSERT_NE(index.get_string("text"), nullptr);
  EXPECT_EQ(*index.get_string("text"), "some \u00e4 text");
  EXPECT_EQ(index.get_string("u8"), nullptr);
  ASSERT_NE(index.get_integers("i8s"), nullptr);
  EXPECT_EQ(*index.get_integers("i8s"), (std::vector<int64_t>{1, -2}));
  EXPECT_EQ(*index.get_integers("u16s"), (std::vector<int64_t>{65'535}));
  EXPECT_TRUE(index.get_integers("none")->empty());
  EXPECT_EQ(*index.get_floats("f32s"), (std::vector<double>{1.5}));
  EXPECT_EQ(*index.get_strings("texts"), (std::vector<std::string>{"", "b"}));
  EXPECT_EQ(index.get_strings("text"), nullptr);
  EXPECT_TRUE(index.has("bools"));
  EXPECT_FALSE(index.has("missing"));
}

TEST(GgufIndexTest, HonoursTheFilesAlignment) {
  GgufBuilder builder;
  builder.alignment = 256;
  builder.set("general.alignment", uint32_t{256});
  builder.add_tensor("a", GGML_TYPE_F32, {3});
  builder.add_tensor("b", GGML_TYPE_F32, {3});
  const TemporaryFile file(temporary_path("aligned.gguf"), builder.build());
  const Result<GgufIndex> index = GgufIndex::open(file.path());
  ASSERT_TRUE(index.ok()) << index.status().message();
  EXPECT_EQ(index->find("a")->offset % 256, 0U);
  EXPECT_EQ(index->find("b")->offset, index->find("a")->offset + 256);
}

TEST(GgufIndexTest, DropsTheTokenizersArrays) {
  GgufBuilder builder;
  byte_level_vocabulary().write(builder);
  const TemporaryFile file(temporary_path("vocabulary.gguf"), builder.build());
  Result<GgufIndex> index = GgufIndex::open(file.path());
  ASSERT_TRUE(index.ok());
  EXPECT_NE(index->get_strings("tokenizer.ggml.tokens"), nullptr);
  index->drop_tokenizer_arrays();
  EXPECT_EQ(index->get_strings("tokenizer.ggml.tokens"), nullptr);
  EXPECT_TRUE(index->has("tokenizer.ggml.model"));
  EXPECT_FALSE(check_vocabulary(*index).ok());
}

struct Damage {
  std::string name;
  std::function<void(GgufBuilder&)> apply;
  std::string message;
};

class GgufDamageTest : public ::testing::TestWithParam<Damage> {};

TEST_P(GgufDamageTest, IsRefused) {
  GgufBuilder builder = small_model();
  GetParam().apply(builder);
  expect_refused(builder, GetParam().message);
}

Bytes raw(std::initializer_list<uint64_t> words) {
  Bytes bytes;
  for (const uint64_t word : words) GgufBuilder::put(bytes, word);
  return bytes;
}

Bytes raw_array(uint32_t type, uint64_t count) {
  Bytes bytes;
  GgufBuilder::put(bytes, type);
  GgufBuilder::put(bytes, count);
  return bytes;
}

constexpr uint64_t kHuge = uint64_t{1} << 62;
constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();

INSTANTIATE_TEST_SUITE_P(
    Header, GgufDamageTest,
    ::testing::Values(
        Damage{"Magic", [](GgufBuilder& b) { b.magic = "GGML"; }, "not a GGUF file"},
        Damage{"Version1", [](GgufBuilder& b) { b.version = 1; }, "GGUF version 1"},
        Damage{"Version4", [](GgufBuilder& b) { b.version = 4; }, "GGUF version 4"},
        Damage{"BigEndian", [](GgufBuilder& b) { b.version = 0x03000000; }, "big-endian"},
        Damage{"TooManyTensors", [](GgufBuilder& b) { b.claimed_tensors = kHuge; }, "tensors, more than there can be"},
        Damage{"NegativeTensors", [](GgufBuilder& b) { b.claimed_tensors = kMost; }, "tensors, more than there can be"},
        Damage{"TooManyKeys", [](GgufBuilder& b) { b.claimed_keys = kHuge; }, "metadata keys, more than there can be"},
        Damage{"OneTensorMore", [](GgufBuilder& b) { b.claimed_tensors = 4; }, ""},
        Damage{"OneKeyMore", [](GgufBuilder& b) { b.claimed_keys = 3; }, ""},
        Damage{"EmptyKey", [](GgufBuilder& b) { b.set("", uint32_t{1}); }, "metadata key 2"},
        Damage{"KeyWithNul", [](GgufBuilder& b) { b.set(std::string_view("a\0b", 3), uint32_t{1}); }, "printable"},
        Damage{"LongKey", [](GgufBuilder& b) { b.set(std::string(70'000, 'k'), uint32_t{1}); }, "70000"},
        Damage{"KeyTwice", [](GgufBuilder& b) { b.set("llama.block_count", uint32_t{1}); }, "there twice"},
        Damage{"UnknownType", [](GgufBuilder& b) { b.set_raw("k", 77, raw({0})); }, "unknown type 77"},
        Damage{"LongString", [](GgufBuilder& b) { b.set_raw("k", GGUF_TYPE_STRING, raw({kHuge})); }, "'k' claims"},
        Damage{"LongArray", [](GgufBuilder& b) { b.set_raw("k", GGUF_TYPE_ARRAY, raw_array(GGUF_TYPE_UINT8, kHuge)); },
               "'k' claims"},
        Damage{"LongStringArray",
               [](GgufBuilder& b) { b.set_raw("k", GGUF_TYPE_ARRAY, raw_array(GGUF_TYPE_STRING, kMost)); },
               "'k' claims"},
        Damage{"NestedArray", [](GgufBuilder& b) { b.set_raw("k", GGUF_TYPE_ARRAY, raw_array(GGUF_TYPE_ARRAY, 1)); },
               "array of the unknown type 9"},
        Damage{"UnknownArray", [](GgufBuilder& b) { b.set_raw("k", GGUF_TYPE_ARRAY, raw_array(13, 0)); },
               "array of the unknown type 13"},
        Damage{"Alignment0", [](GgufBuilder& b) { b.set("general.alignment", uint32_t{0}); }, "general.alignment is 0"},
        Damage{"Alignment4", [](GgufBuilder& b) { b.set("general.alignment", uint32_t{4}); }, "general.alignment is 4"},
        Damage{"Alignment48", [](GgufBuilder& b) { b.set("general.alignment", uint32_t{48}); }, "power of two"},
        Damage{"AlignmentType", [](GgufBuilder& b) { b.set("general.alignment", uint64_t{32}); }, "has type 10"},
        Damage{"AlignmentHuge", [](GgufBuilder& b) { b.set("general.alignment", uint32_t{1} << 31); }, ""},
        Damage{"SplitType", [](GgufBuilder& b) { b.set("split.no", uint32_t{0}); }, "'split.no' has type 4"}),
    [](const auto& tested) { return tested.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tensors, GgufDamageTest,
    ::testing::Values(
        Damage{"EmptyName", [](GgufBuilder& b) { b.add_tensor("", GGML_TYPE_F32, {8}); }, "the name of tensor 3"},
        Damage{"LongName", [](GgufBuilder& b) { b.add_tensor(std::string(64, 'n'), GGML_TYPE_F32, {8}); }, "64 bytes"},
        Damage{"NameWithNul", [](GgufBuilder& b) { b.add_tensor(std::string_view("a\0", 2), GGML_TYPE_F32, {8}); },
               "printable"},
        Damage{"NameTwice", [](GgufBuilder& b) { b.add_tensor("output_norm.weight", GGML_TYPE_F32, {8}); },
               "'output_norm.weight' is there twice"},
        Damage{"NoDimensions", [](GgufBuilder& b) { b.add_raw_tensor("t", {}, GGML_TYPE_F32, 0); }, "0 dimensions"},
        Damage{"FiveDimensions",
               [](GgufBuilder& b) {
                 b.add_raw_tensor("t", {1, 1, 1, 1, 1}, GGML_TYPE_F32, 0);
               },
               "5 dimensions"},
        Damage{"ZeroElements",
               [](GgufBuilder& b) {
                 b.add_raw_tensor("t", {32, 0}, GGML_TYPE_F32, 0);
               },
               "0 elements in dimension 1"},
        Damage{"NegativeElements", [](GgufBuilder& b) { b.add_raw_tensor("t", {-32}, GGML_TYPE_F32, 0); },
               "-32 elements"},
        Damage{"ElementsOverflow",
               [](GgufBuilder& b) {
                 b.add_raw_tensor("t", {1LL << 40, 1LL << 40}, GGML_TYPE_F32, 0);
               },
               "more elements than can be counted"},
        Damage{"BytesOverflow", [](GgufBuilder& b) { b.add_raw_tensor("t", {1LL << 62}, GGML_TYPE_F64, 0); },
               "larger than the file"},
        Damage{"UnknownType", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, GGML_TYPE_COUNT, 0); },
               "which this ggml does not know"},
        Damage{"NegativeType", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, 0xffffffff, 0); },
               "which this ggml does not know"},
        Damage{"RemovedType", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, 4, 0); },
               "which this ggml does not know"},
        Damage{"PartOfABlock", [](GgufBuilder& b) { b.add_raw_tensor("t", {33}, GGML_TYPE_Q4_0, 0); },
               "not a multiple of q4_0's block of 32"},
        Damage{"UnalignedOffset", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, GGML_TYPE_F32, 16); },
               "not a multiple of the alignment 32"},
        Damage{"OffsetOverflow", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, GGML_TYPE_F32, kMost - 31); },
               "truncated"},
        Damage{"BeyondTheEnd", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, GGML_TYPE_F32, 1 << 20); },
               "truncated"},
        Damage{"Overlap", [](GgufBuilder& b) { b.add_raw_tensor("t", {32}, GGML_TYPE_F32, 64); }, "overlap"},
        Damage{"Truncated", [](GgufBuilder& b) { b.cut_from_end = 32; }, "truncated"}),
    [](const auto& tested) { return tested.param.name; });

TEST(GgufIndexTest, EveryTruncationIsRefused) {
  const Bytes whole = small_model().build();
  for (size_t size = 0; size < whole.size(); ++size) {
    expect_refused(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)), "");
  }
}

TEST(GgufIndexTest, OnlyRegularFiles) {
  for (const std::string& path : {::testing::TempDir() + "no_such.gguf", ::testing::TempDir(), std::string()}) {
    const Result<GgufIndex> index = GgufIndex::open(path);
    ASSERT_FALSE(index.ok());
    EXPECT_EQ(index.status().kind(), StatusKind::kFile);
    EXPECT_NE(index.status().message().find(path), std::string::npos);
  }
}

// Three shards of one model, as gguf-split writes them: all metadata in the first.
class SplitTest : public ::testing::Test {
 protected:
  static constexpr int kShards = 3;

  std::string path(int shard) const {
    char suffix[40];
    std::snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", shard + 1, kShards);
    return prefix_ + suffix;
  }
  GgufBuilder shard(int number) const {
    GgufBuilder builder;
    if (number == 0) builder.set("general.architecture", "llama");
    builder.set("split.no", static_cast<uint16_t>(number));
    builder.set("split.count", uint16_t{kShards});
    builder.set("split.tensors.count", int32_t{kShards + 1});
    builder.add_tensor("t" + std::to_string(number), GGML_TYPE_F32, {number + 1});
    if (number == 1) builder.add_tensor("more", GGML_TYPE_F32, {100});
    return builder;
  }
  void write(int number, const GgufBuilder& builder) {
    files_.push_back(std::make_unique<TemporaryFile>(path(number), builder.build()));
  }
  void write_all() {
    for (int i = 0; i < kShards; ++i) write(i, shard(i));
  }
  void expect_refused_by_all(const std::string& part) {
    for (int i = 0; i < kShards; ++i) {
      const Result<GgufIndex> index = GgufIndex::open(path(i));
      if (::access(path(i).c_str(), F_OK) == 0) {
        ASSERT_FALSE(index.ok());
        EXPECT_EQ(index.status().kind(), StatusKind::kFile);
        EXPECT_NE(index.status().message().find(prefix_), std::string::npos) << index.status().message();
        EXPECT_NE(index.status().message().find(part), std::string::npos) << index.status().message();
      }
    }
  }

  std::string prefix_ = temporary_path("split");
  std::vector<std::unique_ptr<TemporaryFile>> files_;
};

TEST_F(SplitTest, AnyShardLeadsToAll) {
  write_all();
  for (int i = 0; i < kShards; ++i) {
    const Result<GgufIndex> index = GgufIndex::open(path(i));
    ASSERT_TRUE(index.ok()) << index.status().message();
    ASSERT_EQ(index->files().size(), 3U);
    EXPECT_EQ(index->tensors().size(), 4U);
    for (int j = 0; j < kShards; ++j) {
      EXPECT_EQ(index->files()[static_cast<size_t>(j)].path, path(j));
      ASSERT_NE(index->find("t" + std::to_string(j)), nullptr);
      EXPECT_EQ(index->find("t" + std::to_string(j))->file, j);
    }
    EXPECT_EQ(index->find("more")->file, 1);
    EXPECT_NE(index->get_string("general.architecture"), nullptr);
  }
}

TEST_F(SplitTest, OneMissing) {
  write(0, shard(0));
  write(2, shard(2));
  expect_refused_by_all("-00002-of-00003.gguf: cannot be opened");
}

TEST_F(SplitTest, TwoSwapped) {
  write(0, shard(0));
  write(1, shard(2));
  write(2, shard(1));
  expect_refused_by_all("");
}

TEST_F(SplitTest, OneOfAnotherModel) {
  write(0, shard(0));
  GgufBuilder other = shard(1);
  other.add_tensor("even_more", GGML_TYPE_F32, {1});
  write(1, other);
  write(2, shard(2));
  expect_refused_by_all("announces 4 tensors in all shards, they hold 5");
}

TEST_F(SplitTest, OneThatIsNoShard) {
  write(0, shard(0));
  write(1, small_model());
  write(2, shard(2));
  const Result<GgufIndex> index = GgufIndex::open(path(0));
  ASSERT_FALSE(index.ok());
  EXPECT_NE(index.status().message().find("no shard"), std::string::npos) << index.status().message();
}

TEST_F(SplitTest, TensorInTwoShards) {
  write(0, shard(0));
  GgufBuilder other = shard(1);
  other.add_tensor("t0", GGML_TYPE_F32, {1});
  write(1, other);
  write(2, shard(2));
  expect_refused_by_all("'t0' is there twice");
}

TEST_F(SplitTest, Renamed) {
  const TemporaryFile file(temporary_path("renamed.gguf"), shard(0).build());
  const Result<GgufIndex> index = GgufIndex::open(file.path());
  ASSERT_FALSE(index.ok());
  EXPECT_NE(index.status().message().find("rename"), std::string::npos) << index.status().message();
}

TEST_F(SplitTest, NumberBeyondTheCount) {
  GgufBuilder builder;
  builder.set("split.no", uint16_t{3});
  builder.set("split.count", uint16_t{3});
  write(0, builder);
  const Result<GgufIndex> index = GgufIndex::open(path(0));
  ASSERT_FALSE(index.ok());
  EXPECT_NE(index.status().message().find("split.no"), std::string::npos) << index.status().message();
}

}  // namespace
}  // namespace drafthorse
