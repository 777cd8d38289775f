#include "model/fitted_routers.h"

#include <fmt/format.h>
#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "io/file_set.h"
#include "io/fingerprint.h"
#include "io/read_queue.h"

namespace drafthorse {
namespace {

constexpr const char* kArchitecture = "drafthorse-fitted";
constexpr const char* kVersionKey = "drafthorse-fitted.version";
constexpr const char* kTargetKey = "drafthorse-fitted.target";
constexpr const char* kDraftKey = "drafthorse-fitted.draft";
constexpr uint32_t kVersion = 1;
constexpr float kMostF16 = 65504;

std::string router_name(int32_t layer) { return fmt::format("blk.{}.fitted.weight", layer); }
std::string offset_name(int32_t layer) { return fmt::format("blk.{}.fitted.bias", layer); }

// "dir/model-00001-of-00003.gguf" -> "model"
std::string stem_of(const std::string& path) {
  std::string stem = std::filesystem::path(path).filename().string();
  if (stem.ends_with(".gguf")) stem.resize(stem.size() - std::string_view(".gguf").size());
  constexpr std::string_view kShard = "-00001-of-00001";
  if (stem.size() > kShard.size()) {
    const size_t at = stem.size() - kShard.size();
    bool is_shard = true;
    for (size_t i = 0; i < kShard.size(); ++i) {
      const bool digit = kShard[i] == '0' || kShard[i] == '1';
      is_shard = is_shard && (digit ? stem[at + i] >= '0' && stem[at + i] <= '9' : stem[at + i] == kShard[i]);
    }
    if (is_shard) stem.resize(at);
  }
  return stem;
}

// Why it does not fit the pair; empty where it does. kFile where it is no such file at all.
Result<std::string> check_made_for(const GgufIndex& index, const std::string& path, const ModelFile& target,
                                   const ModelFile& draft) {
  const std::string* architecture = index.get_string("general.architecture");
  const std::optional<uint64_t> version = index.get_u64(kVersionKey);
  const std::string* of_target = index.get_string(kTargetKey);
  const std::string* of_draft = index.get_string(kDraftKey);
  if (architecture == nullptr || *architecture != kArchitecture || !version) {
    return file_error(fmt::format("{}: holds no fitted routers; drafthorse calibrate makes them", path));
  }
  constexpr const char* kAnew = "drafthorse calibrate makes them anew";
  if (*version != kVersion) {
    return fmt::format("{}: its routers were fitted by another version of drafthorse; {}", path, kAnew);
  }
  if (of_target == nullptr || of_draft == nullptr) {
    return file_error(fmt::format("{}: does not say what it was fitted to; {}", path, kAnew));
  }
  ASSIGN_OR_RETURN(const std::string target_print, model_fingerprint(target.index));
  ASSIGN_OR_RETURN(const std::string draft_print, model_fingerprint(draft.index));
  const char* other = *of_target != target_print ? "target" : *of_draft != draft_print ? "draft" : nullptr;
  if (other == nullptr) return std::string();
  return fmt::format("{}: its routers were fitted to another {}; {}", path, other, kAnew);
}

bool all_finite(const ggml_tensor& tensor) {
  const auto count = static_cast<size_t>(ggml_nelements(&tensor));
  std::vector<float> numbers(count);
  if (tensor.type == GGML_TYPE_F32) {
    std::copy_n(static_cast<const float*>(tensor.data), count, numbers.begin());
  } else {
    ggml_fp16_to_fp32_row(static_cast<const ggml_fp16_t*>(tensor.data), numbers.data(), static_cast<int64_t>(count));
  }
  return std::all_of(numbers.begin(), numbers.end(), [](float one) { return std::isfinite(one); });
}

struct GgufDeleter {
  void operator()(gguf_context* context) const { gguf_free(context); }
};
struct GgmlDeleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
};

}  // namespace

LayerId corresponding_layer(LayerId layer, int target_layers, int draft_layers) {
  if (target_layers <= 1) return LayerId{0};
  const double part = static_cast<double>(index(layer)) / (target_layers - 1);
  return LayerId{static_cast<int32_t>(std::lround(part * (draft_layers - 1)))};
}

std::string fitted_routers_path(const std::string& draft_path, const std::string& target_path) {
  const std::filesystem::path folder = std::filesystem::path(draft_path).parent_path();
  return (folder / fmt::format("{}.fitted-to-{}.gguf", stem_of(draft_path), stem_of(target_path))).string();
}

Result<std::unique_ptr<FittedRouters>> FittedRouters::open(const std::string& path, const ModelFile& target,
                                                           const ModelFile& draft) {
  ASSIGN_OR_RETURN(const GgufIndex index, GgufIndex::open(path));
  std::unique_ptr<FittedRouters> fitted(new FittedRouters);
  fitted->path_ = path;
  ASSIGN_OR_RETURN(fitted->why_stale_, check_made_for(index, path, target, draft));
  if (!fitted->why_stale_.empty()) return fitted;
  WeightDeclarations declarations(index);
  for (int32_t i = 0; i < target.config.n_layer; ++i) {
    Map& map = fitted->maps_.emplace_back();
    if (!target.config.has_experts(i)) continue;
    using Use = WeightDeclarations::Use;
    map.router = declarations.required(router_name(i), Use::kMatrix, draft.config.n_embd, target.config.n_expert);
    map.offset = declarations.required(offset_name(i), Use::kVector, target.config.n_expert);
    if (map.router != nullptr && map.router->type != GGML_TYPE_F16) {
      return file_error(fmt::format("{}: {} is not of type F16", path, router_name(i)));
    }
  }
  RETURN_IF_ERROR(declarations.finish());
  ASSIGN_OR_RETURN(fitted->weights_, DenseWeights::reserve(declarations));
  return fitted;
}

Status FittedRouters::load() {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileSet> files, FileSet::open({path_}));
  const std::unique_ptr<ReadQueue> queue = make_pread_queue(*files, 1);
  RETURN_IF_ERROR(weights_.load(*files, *queue, {}));
  for (const Map& map : maps_) {
    if (map.router == nullptr || (all_finite(*map.router) && all_finite(*map.offset))) continue;
    return file_error(fmt::format("{}: {} holds numbers that are none; drafthorse calibrate makes them anew", path_,
                                  ggml_get_name(map.router)));
  }
  return {};
}

Status write_fitted_routers(const std::string& path, const ModelFile& target, const ModelFile& draft,
                            const std::vector<FittedRouter>& routers) {
  ASSIGN_OR_RETURN(const std::string target_print, model_fingerprint(target.index));
  ASSIGN_OR_RETURN(const std::string draft_print, model_fingerprint(draft.index));
  const std::unique_ptr<gguf_context, GgufDeleter> out(gguf_init_empty());
  gguf_set_val_str(out.get(), "general.architecture", kArchitecture);
  gguf_set_val_u32(out.get(), kVersionKey, kVersion);
  gguf_set_val_str(out.get(), kTargetKey, target_print.c_str());
  gguf_set_val_str(out.get(), kDraftKey, draft_print.c_str());
  const std::unique_ptr<ggml_context, GgmlDeleter> shapes(
      ggml_init({2 * routers.size() * ggml_tensor_overhead(), nullptr, /*no_alloc=*/true}));
  CHECK(shapes != nullptr);
  std::vector<std::vector<ggml_fp16_t>> halves;
  for (const FittedRouter& one : routers) {
    CHECK(one.router.size() == one.offsets.size() * static_cast<size_t>(draft.config.n_embd));
    std::vector<float> within = one.router;
    for (float& weight : within) weight = std::clamp(weight, -kMostF16, kMostF16);
    std::vector<ggml_fp16_t>& half = halves.emplace_back(within.size());
    ggml_fp32_to_fp16_row(within.data(), half.data(), static_cast<int64_t>(within.size()));
    const auto experts = static_cast<int64_t>(one.offsets.size());
    ggml_tensor* router = ggml_new_tensor_2d(shapes.get(), GGML_TYPE_F16, draft.config.n_embd, experts);
    router->data = half.data();
    ggml_set_name(router, router_name(index(one.layer)).c_str());
    gguf_add_tensor(out.get(), router);
    ggml_tensor* offset = ggml_new_tensor_1d(shapes.get(), GGML_TYPE_F32, experts);
    offset->data = const_cast<float*>(one.offsets.data());  // is only read
    ggml_set_name(offset, offset_name(index(one.layer)).c_str());
    gguf_add_tensor(out.get(), offset);
  }
  const std::string beside = path + ".new";
  const auto failed = [&] {
    static_cast<void>(std::remove(beside.c_str()));
    return file_error(fmt::format("{}: cannot be written; give another place with -o", path));
  };
  if (!gguf_write_to_file(out.get(), beside.c_str(), /*only_meta=*/false)) return failed();
  // What a full disk cut off would be found by every later run: it is found here.
  if (!FittedRouters::open(beside, target, draft).ok()) return failed();
  if (std::rename(beside.c_str(), path.c_str()) != 0) return failed();
  return {};
}

}  // namespace drafthorse
