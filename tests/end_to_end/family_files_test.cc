// What can be wrong with a file of each family is a sentence, before anything is computed with it; what is right is
// described and planned for.
#include <fmt/format.h>
#include <gguf.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <set>

#include "end_to_end/generation.h"
#include "engine/inspect.h"
#include "engine/work.h"
#include "support/family_cases.h"
#include "support/temp_dir.h"

namespace drafthorse {
namespace {

// A file in memory, to be written with something changed.
class Original {
 public:
  explicit Original(const std::string& path) {
    gguf_.reset(gguf_init_from_file(path.c_str(), {/*no_alloc=*/false, &tensors_}));
    CHECK(gguf_ != nullptr);
  }
  ~Original() { ggml_free(tensors_); }
  Original(const Original&) = delete;
  Original& operator=(const Original&) = delete;

  std::vector<std::string> tensor_names() const {
    std::vector<std::string> names;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf_.get()); ++i) {
      names.emplace_back(gguf_get_tensor_name(gguf_.get(), i));
    }
    return names;
  }
  // Those of the architecture's own.
  std::vector<std::string> keys(const std::string& architecture) const {
    std::vector<std::string> names;
    for (int64_t i = 0; i < gguf_get_n_kv(gguf_.get()); ++i) {
      const std::string key = gguf_get_key(gguf_.get(), i);
      if (key.starts_with(architecture + ".")) names.push_back(key);
    }
    return names;
  }
  gguf_type type_of(const std::string& key) const {
    return gguf_get_kv_type(gguf_.get(), gguf_find_key(gguf_.get(), key.c_str()));
  }

  struct Change {
    std::function<void(gguf_context*)> metadata = {};
    std::string missing = {};   // a tensor
    std::string one_less = {};  // a tensor whose last dimension is one less
  };
  void write(const std::string& path, const Change& change) const {
    const std::unique_ptr<gguf_context, Free> out(gguf_init_empty());
    gguf_set_kv(out.get(), gguf_.get());
    if (change.metadata) change.metadata(out.get());
    const size_t room = ggml_tensor_overhead() * (static_cast<size_t>(gguf_get_n_tensors(gguf_.get())) + 1);
    ggml_context* shapes = ggml_init({room, nullptr, /*no_alloc=*/true});
    for (const std::string& name : tensor_names()) {
      if (name == change.missing) continue;
      const ggml_tensor* tensor = ggml_get_tensor(tensors_, name.c_str());
      std::vector<int64_t> shape(tensor->ne, tensor->ne + ggml_n_dims(tensor));
      if (name == change.one_less) shape.back() -= shape.size() > 1 ? 1 : ggml_blck_size(tensor->type);
      ggml_tensor* copy = ggml_new_tensor(shapes, tensor->type, static_cast<int>(shape.size()), shape.data());
      ggml_set_name(copy, name.c_str());
      copy->data = tensor->data;
      gguf_add_tensor(out.get(), copy);
    }
    CHECK(gguf_write_to_file(out.get(), path.c_str(), /*only_meta=*/false));
    ggml_free(shapes);
  }

 private:
  struct Free {
    void operator()(gguf_context* gguf) const { gguf_free(gguf); }
  };
  std::unique_ptr<gguf_context, Free> gguf_;
  ggml_context* tensors_ = nullptr;
};

EngineOptions options_for(const std::string& path) {
  EngineOptions options;
  options.target_path = path;
  options.context = 64;
  options.ram_bytes = uint64_t{4} << 30;
  options.threads = 1;
  return options;
}

// The sentence it is refused with; empty where it is not, and then it generates.
std::string refusal(const std::string& path) {
  Result<std::unique_ptr<Engine>> engine = Engine::open(options_for(path), {});
  if (engine.ok()) {
    const std::vector<int32_t> prompt = {1, 2, 3};
    const Status generated = generate(**engine, prompt, 3).status;
    // A context of one token is too short, and that is said.
    EXPECT_TRUE(generated.ok() || generated.kind() == StatusKind::kUsage) << generated.message();
    return "";
  }
  const Status& status = engine.status();
  EXPECT_EQ(status.kind(), StatusKind::kFile) << status.message();
  EXPECT_NE(status.message().find(path), std::string::npos) << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
  return status.message();
}

class FamilyFiles : public testing::TestWithParam<FamilyCase> {
 protected:
  void SetUp() override {
    TinyModelOptions options = GetParam().options;
    if (!options.routing.bias) options.n_layer = std::min(options.n_layer, 2);
    options.type = GGML_TYPE_Q4_0;
    options.n_tokens = 300;
    const Result<std::string> path = write_tiny_model(folder_.file("model.gguf"), options);
    ASSERT_TRUE(path.ok()) << path.status().message();
    path_ = *path;
    original_ = std::make_unique<Original>(path_);
  }

  std::string refusal_of(const Original::Change& change) {
    const std::string path = folder_.file("changed.gguf");
    original_->write(path, change);
    return refusal(path);
  }

  TempDir folder_;
  std::string path_;
  std::unique_ptr<Original> original_;
};

TEST_P(FamilyFiles, AMissingTensorIsNamed) {
  ASSERT_EQ(refusal_of({}), "");
  for (const std::string& name : original_->tensor_names()) {
    // Files without these are files of their own kind.
    const bool may_miss =
        name == "output.weight" ||
        (GetParam().options.architecture == "phimoe" &&
         (name.ends_with("attn_q.bias") || name.ends_with("attn_k.bias") || name.ends_with("attn_v.bias")));
    if (may_miss) continue;
    const std::string message = refusal_of({.missing = name});
    EXPECT_NE(message, "") << name;
    // Of pairs either may be named.
    if (!name.starts_with("rope_factors") && !name.ends_with("exp_probs_b.bias")) {
      EXPECT_NE(message.find(name), std::string::npos) << message;
    }
  }
}

TEST_P(FamilyFiles, ATensorOfAnotherShapeIsNamed) {
  for (const std::string& name : original_->tensor_names()) {
    const std::string message = refusal_of({.one_less = name});
    EXPECT_NE(message.find(name), std::string::npos) << name << ": " << message;
  }
}

TEST_P(FamilyFiles, AbsurdNumbersAreRefusedOrHarmless) {
  size_t refused = 0;
  const std::vector<std::string> keys = original_->keys(GetParam().options.architecture);
  for (const std::string& key : keys) {
    refused += refusal_of({.metadata = [&](gguf_context* out) { gguf_remove_key(out, key.c_str()); }}).empty() ? 0 : 1;
    refused +=
        refusal_of({.metadata = [&](gguf_context* out) { gguf_set_val_str(out, key.c_str(), "a text"); }}).empty() ? 0
                                                                                                                   : 1;
    if (original_->type_of(key) == GGUF_TYPE_FLOAT32) {
      constexpr float kInfinity = std::numeric_limits<float>::infinity();
      for (const float value : {0.0F, -1.0F, 1e-38F, 3e38F, kInfinity, std::nanf("")}) {
        refused +=
            refusal_of({.metadata = [&](gguf_context* out) { gguf_set_val_f32(out, key.c_str(), value); }}).empty() ? 0
                                                                                                                    : 1;
      }
      continue;
    }
    for (const uint32_t value : {0U, 1U, 2U, 3U, 7U, 255U, 65536U, 1U << 24, 0x7fffffffU, 0xffffffffU}) {
      refused += refusal_of({.metadata = [&](gguf_context* out) { gguf_set_val_u32(out, key.c_str(), value); }}).empty()
                     ? 0
                     : 1;
    }
  }
  EXPECT_GT(refused, 4 * keys.size());
}

TEST_P(FamilyFiles, IsDescribedAndPlannedFor) {
  const Result<ModelDescription> description = describe_model(path_);
  ASSERT_TRUE(description.ok()) << description.status().message();
  EXPECT_EQ(description->problem, "");
  EXPECT_EQ(description->architecture, GetParam().options.architecture);
  ASSERT_TRUE(description->config.has_value());
  const bool has_experts = GetParam().options.n_expert > 0;
  EXPECT_EQ(description->slot_bytes > 0, has_experts);
  EXPECT_EQ(description->experts_bytes > 0, has_experts);

  const Result<GgufIndex> index = GgufIndex::open(path_);
  ASSERT_TRUE(index.ok());
  EngineOptions options = options_for(path_);
  options.context = 2000;
  const Result<std::unique_ptr<Engine>> engine = Engine::prepare(options);
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  // Every matrix is somebody's work.
  const Model& model = *(*engine)->target().model;
  const ModelWork work = model_work(*index, model);
  double counted = work.head.weights;
  for (const LayerWork& layer : work.layers) {
    for (const MatrixWork& matrix : layer.dense) counted += matrix.weights;
    for (const MatrixWork& matrix : layer.expert) counted += matrix.weights * layer.n_expert;
  }
  double all = 0;
  for (const TensorInfo& tensor : index->tensors()) {
    const bool is_table = tensor.name == "token_embd.weight" && index->find("output.weight") != nullptr;
    if (tensor.ne[1] > 1 && !is_table) all += static_cast<double>(tensor.ne[0] * tensor.ne[1] * tensor.ne[2]);
  }
  EXPECT_EQ(counted, all);
  // The cache is as large as what it holds.
  const TinyModelOptions& tiny = GetParam().options;
  const int64_t row = tiny.architecture == "deepseek2" ? tiny.latent.kv_rank + tiny.latent.rope_dim
                                                       : int64_t{2} * tiny.head_dim * tiny.n_head_kv;
  const auto bytes = static_cast<uint64_t>(row * 2 * 2000 * model.config().n_layer);
  EXPECT_GE(model.kv().bytes(), bytes);
  EXPECT_LT(model.kv().bytes(), bytes + (uint64_t{2} << 20) + 4096);
  EXPECT_LE(expected_peak_bytes(**engine, 100, 100), (*engine)->ledger().total());
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyFiles, testing::ValuesIn(family_cases()), family_case_name);

// What is not computed is refused by name, with what is.
TEST(FamilyFiles, UnsupportedSettingsAreNamed) {
  const TempDir folder;
  const auto message_of = [&](const TinyModelOptions& tiny, const std::function<void(gguf_context*)>& change) {
    const Result<std::string> path = write_tiny_model(folder.file("model.gguf"), tiny);
    EXPECT_TRUE(path.ok());
    const std::string changed = folder.file("changed.gguf");
    Original(*path).write(changed, {.metadata = change});
    return refusal(changed);
  };
  const TinyModelOptions qwen = {.architecture = "qwen3", .n_layer = 1, .n_ff = 64, .n_expert = 0, .n_tokens = 300};
  const TinyModelOptions deepseek = {.architecture = "deepseek2",
                                     .n_layer = 1,
                                     .n_ff = 64,
                                     .n_expert = 4,
                                     .n_ff_expert = 64,
                                     .n_ff_shared = 64,
                                     .n_tokens = 300};
  const auto expect = [](const std::string& message, const std::string& words) {
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  expect(
      message_of(qwen, [](gguf_context* out) { gguf_set_val_str(out, "general.architecture", "gemma4"); }),
      "architecture 'gemma4' is not supported (supported: llama, qwen2, qwen2moe, qwen3, qwen3moe, phimoe, deepseek, "
      "deepseek2)");
  expect(message_of(qwen, [](gguf_context* out) { gguf_set_val_str(out, "qwen3.rope.scaling.type", "longrope"); }),
         "rotary scaling 'longrope' is not supported for architecture 'qwen3' (supported: none, linear, yarn)");
  expect(message_of(deepseek, [](gguf_context* out) { gguf_set_val_u32(out, "deepseek2.expert_gating_func", 3); }),
         "(supported: 1, softmax, and 2, sigmoid)");
  expect(message_of(deepseek, [](gguf_context* out) { gguf_set_val_u32(out, "deepseek2.nextn_predict_layers", 1); }),
         "not supported");
  expect(message_of(deepseek, [](gguf_context* out) { gguf_set_val_u32(out, "deepseek2.expert_group_count", 3); }),
         "groups of experts make no sense");
  TinyModelOptions biased = deepseek;
  biased.routing.bias = true;
  expect(message_of(biased, [](gguf_context*) {}), "expert_gating_func' is missing");
}

}  // namespace
}  // namespace drafthorse
