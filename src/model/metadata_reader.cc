#include "model/metadata_reader.h"

#include <fmt/format.h>

#include <cmath>

namespace drafthorse {

Status MetadataReader::error(const std::string& what) const {
  return file_error(fmt::format("{}: {}", index_.files().front().path, what));
}

Result<int32_t> MetadataReader::dimension(std::string_view name, uint64_t least) const {
  const std::optional<uint64_t> value = index_.get_u64(key(name));
  if (!value) return error(fmt::format("metadata has no number '{}'; the file is damaged or not a model", key(name)));
  if (*value < least || *value > kMaxDimension) {
    return error(fmt::format("'{}' = {} is out of range", key(name), *value));
  }
  return static_cast<int32_t>(*value);
}

Result<int32_t> MetadataReader::dimension_or(std::string_view name, int32_t otherwise) const {
  if (!has(name)) return otherwise;
  return dimension(name, 0);
}

Result<float> MetadataReader::number_or(std::string_view name, double otherwise) const {
  if (!has(name)) return static_cast<float>(otherwise);
  const std::optional<double> value = index_.get_f64(key(name));
  if (!value || !std::isfinite(static_cast<float>(*value))) {
    return error(fmt::format("'{}' is not a finite number", key(name)));
  }
  return static_cast<float>(*value);
}

Result<bool> MetadataReader::flag_or(std::string_view name, bool otherwise) const {
  if (!has(name)) return otherwise;
  const std::optional<bool> value = index_.get_bool(key(name));
  if (!value) return error(fmt::format("'{}' is neither true nor false", key(name)));
  return *value;
}

Result<std::string> MetadataReader::text_or(std::string_view name, const std::string& otherwise) const {
  if (!has(name)) return otherwise;
  const std::string* value = index_.get_string(key(name));
  if (value == nullptr) return error(fmt::format("'{}' is not a text", key(name)));
  return *value;
}

}  // namespace drafthorse
