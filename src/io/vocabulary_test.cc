#include <gtest/gtest.h>
#include <llama.h>

#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "io/gguf_index.h"
#include "io/testing/gguf_builder.h"
#include "io/testing/libllama_vocabulary.h"
#include "io/testing/temporary_file.h"

namespace drafthorse {
namespace {

GgufIndex open_or_die(const std::string& path) {
  Result<GgufIndex> index = GgufIndex::open(path);
  if (!index.ok()) ADD_FAILURE() << index.status().message();
  return std::move(index).value();
}

Bytes with_vocabulary(const TestVocabulary& vocabulary) {
  GgufBuilder builder;
  builder.set("general.architecture", "llama");
  vocabulary.write(builder);
  return builder.build();
}

TEST(VocabularyTest, SoundOnesLoad) {
  TestVocabulary kimi = byte_level_vocabulary();
  kimi.pre = "kimi-k2";
  kimi.merges.reset();
  TestVocabulary empty_token = byte_level_vocabulary();
  empty_token.add("", 1);
  TestVocabulary gemma = byte_level_vocabulary();
  gemma.model = "gemma4";
  gemma.pre.reset();
  for (const TestVocabulary& vocabulary :
       {byte_level_vocabulary(), sentencepiece_vocabulary(), kimi, empty_token, gemma}) {
    const TemporaryFile file(temporary_path("vocabulary.gguf"), with_vocabulary(vocabulary));
    const Status status = check_vocabulary(open_or_die(file.path()));
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(loads_in_libllama(file.path())) << vocabulary.model;
  }
}

struct Spoilt {
  std::string name;
  std::function<void(TestVocabulary&)> apply;
  std::string message;
};

class BytePairDamageTest : public ::testing::TestWithParam<Spoilt> {};
class SentencePieceDamageTest : public ::testing::TestWithParam<Spoilt> {};

void expect_spoilt(TestVocabulary vocabulary, const Spoilt& spoilt) {
  spoilt.apply(vocabulary);
  const TemporaryFile file(temporary_path("vocabulary.gguf"), with_vocabulary(vocabulary));
  const Status status = check_vocabulary(open_or_die(file.path()));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.kind(), StatusKind::kFile);
  EXPECT_NE(status.message().find(file.path()), std::string::npos) << status.message();
  EXPECT_NE(status.message().find(spoilt.message), std::string::npos) << status.message();
}

TEST_P(BytePairDamageTest, IsRefused) { expect_spoilt(byte_level_vocabulary(), GetParam()); }
TEST_P(SentencePieceDamageTest, IsRefused) { expect_spoilt(sentencepiece_vocabulary(), GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    All, BytePairDamageTest,
    ::testing::Values(
        Spoilt{"UnknownModel", [](TestVocabulary& v) { v.model = "bert"; }, "tokenizer 'bert'"},
        Spoilt{"ModelWithNul", [](TestVocabulary& v) { v.model = std::string("gpt2\0", 5); }, "tokenizer 'gpt2?'"},
        Spoilt{"WhitespacePre", [](TestVocabulary& v) { v.pre = "whitespace"; }, "pre-tokenizer"},
        Spoilt{"NoTokens", [](TestVocabulary& v) { v.tokens.clear(); }, "no tokens"},
        Spoilt{"TokenTwice", [](TestVocabulary& v) { v.tokens[5] = v.tokens[50]; }, "there twice"},
        Spoilt{"SameUpToNul",
               [](TestVocabulary& v) {
                 v.tokens[5] = std::string("x\0y", 3);
                 v.tokens[6] = std::string("x\0z", 3);
               },
               "there twice"},
        Spoilt{"MadeUpTextOfAnEmptyOne",
               [](TestVocabulary& v) {
                 v.tokens[5] = "";
                 v.tokens[6] = "[EMPTY_5]";
               },
               "there twice"},
        Spoilt{"NotUtf8", [](TestVocabulary& v) { v.tokens[5] = "\xff\xfe"; }, "not UTF-8"},
        Spoilt{"BeyondUnicode", [](TestVocabulary& v) { v.tokens[5] = "\xf7\xbf\xbf\xbf"; }, "not UTF-8"},
        Spoilt{"CutCharacter", [](TestVocabulary& v) { v.tokens[5] = "a\xc3"; }, "not UTF-8"},
        Spoilt{"LongToken", [](TestVocabulary& v) { v.tokens[5] = std::string(70'000, 'a'); }, "70000 bytes"},
        Spoilt{"TokensThatDecodeToTheirSquare",
               [](TestVocabulary& v) {
                 for (int i = 0; i < 5; ++i) v.tokens[static_cast<size_t>(i) + 5] = std::string(9'000 + i, ' ');
               },
               "decode to"},
        Spoilt{"FewerTypes", [](TestVocabulary& v) { v.types.pop_back(); }, "token types"},
        Spoilt{"UnknownType", [](TestVocabulary& v) { v.types[7] = 9; }, "unknown type 9"},
        Spoilt{"ShortByteToken", [](TestVocabulary& v) { v.types[1] = 6; }, "not written as one"},
        Spoilt{"NoMerges", [](TestVocabulary& v) { v.merges.reset(); }, "merges"},
        Spoilt{"MergeWithoutSpace", [](TestVocabulary& v) { v.merges->at(1) = "the"; }, "merge 1"},
        Spoilt{"EmptyMerge", [](TestVocabulary& v) { v.merges->at(1) = ""; }, "merge 1"},
        Spoilt{"HalfAMerge", [](TestVocabulary& v) { v.merges->at(1) = "the "; }, "merge 1"},
        Spoilt{"MergeNotUtf8", [](TestVocabulary& v) { v.merges->at(1) = "t \xff"; }, "merge 1"},
        Spoilt{"EosBeyondTheEnd", [](TestVocabulary& v) { v.special_ids[1].second = 263; }, "EOS token is 263"},
        Spoilt{"AddsEosWithoutOne",
               [](TestVocabulary& v) {
                 v.special_ids.clear();
                 v.tokens.resize(5);
                 v.types.resize(5);
                 v.switches = {{"tokenizer.ggml.add_bos_token", false}, {"tokenizer.ggml.add_eos_token", true}};
               },
               "EOS"},
        Spoilt{"AddsBosWithoutOne",
               [](TestVocabulary& v) {
                 v.special_ids.clear();
                 v.pre = "glm4";
                 v.switches = {{"tokenizer.ggml.add_bos_token", true}};
               },
               "BOS"},
        Spoilt{"GemmaWithoutBos",
               [](TestVocabulary& v) {
                 v.special_ids.clear();
                 v.model = "gemma4";
               },
               "BOS"}),
    [](const auto& tested) { return tested.param.name; });

INSTANTIATE_TEST_SUITE_P(
    All, SentencePieceDamageTest,
    ::testing::Values(Spoilt{"MissingByte",
                             [](TestVocabulary& v) { v.tokens[3 + 0x41] = "not a byte", v.types[3 + 0x41] = 1; },
                             "no token for the byte 0x41"},
                      Spoilt{"FewerScores", [](TestVocabulary& v) { v.scores.pop_back(); }, "scores"},
                      Spoilt{"ScoreIsNotANumber",
                             [](TestVocabulary& v) { v.scores[4] = std::numeric_limits<float>::quiet_NaN(); },
                             "not a number"},
                      Spoilt{"TokenTwice", [](TestVocabulary& v) { v.tokens.back() = "the"; }, "there twice"}),
    [](const auto& tested) { return tested.param.name; });

// What is refused for libllama's sake would really end the process there.
TEST(VocabularyDeathTest, DuplicateTokensAbortLibllama) {
  TestVocabulary vocabulary = byte_level_vocabulary();
  vocabulary.tokens[5] = vocabulary.tokens[50];
  const TemporaryFile file(temporary_path("vocabulary.gguf"), with_vocabulary(vocabulary));
  EXPECT_DEATH(
      {
        ::setenv("GGML_NO_BACKTRACE", "1", 1);
        loads_in_libllama(file.path());
      },
      "");
}

Status compare(const TestVocabulary& target, const TestVocabulary& draft) {
  const TemporaryFile target_file(temporary_path("target.gguf"), with_vocabulary(target));
  const TemporaryFile draft_file(temporary_path("draft.gguf"), with_vocabulary(draft));
  return check_same_vocabulary(open_or_die(target_file.path()), open_or_die(draft_file.path()));
}

TEST(SameVocabularyTest, PaddingDoesNotCount) {
  const TestVocabulary target = byte_level_vocabulary();
  EXPECT_TRUE(compare(target, target).ok());
  TestVocabulary longer = target;
  for (int i = 0; i < 50; ++i) longer.add("[PAD" + std::to_string(1000 + i) + "]", 5);
  EXPECT_TRUE(compare(target, longer).ok());
  EXPECT_TRUE(compare(longer, target).ok());
  TestVocabulary other_padding = target;
  other_padding.tokens.back() = "<|dummy_1|>";
  EXPECT_TRUE(compare(target, other_padding).ok());
}

TEST(SameVocabularyTest, DifferencesAreNamed) {
  const TestVocabulary target = byte_level_vocabulary();
  const auto expect_differs = [&](const TestVocabulary& draft, const std::string& part) {
    for (const Status& status : {compare(target, draft), compare(draft, target)}) {
      ASSERT_FALSE(status.ok()) << part;
      EXPECT_EQ(status.kind(), StatusKind::kFile);
      EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
      EXPECT_NE(status.message().find("draft.gguf"), std::string::npos) << status.message();
    }
  };
  TestVocabulary other_token = target;
  other_token.tokens[258] = "other";
  expect_differs(other_token, "token 258");
  TestVocabulary longer = target;
  longer.add("a real token", 1);
  expect_differs(longer, "tokens and the target");
  TestVocabulary other_eos = target;
  other_eos.special_ids[1].second = 1;
  expect_differs(other_eos, "EOS token");
  expect_differs(sentencepiece_vocabulary(), "tokenizers");
}

TEST(SameVocabularyTest, TheDemoPairsIsOne) {
  const GgufIndex target = open_or_die(DRAFTHORSE_SOURCE_DIR "/models/mixtral/target.gguf");
  const GgufIndex draft = open_or_die(DRAFTHORSE_SOURCE_DIR "/models/mixtral/draft.gguf");
  for (const Status& status :
       {check_vocabulary(target), check_vocabulary(draft), check_same_vocabulary(target, draft)}) {
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

}  // namespace
}  // namespace drafthorse
