// Small files that a user names: grammars, templates, chats.
#pragma once

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

namespace drafthorse::cli {

// All that is left in it; nothing where that cannot be read.
inline std::optional<std::string> read_text(std::FILE* file) {
  std::string text;
  char piece[4096];
  while (const size_t count = std::fread(piece, 1, sizeof(piece), file)) text.append(piece, count);
  if (std::ferror(file) != 0) return std::nullopt;
  return text;
}

// All of it; nothing where it cannot be opened or read (a folder can be opened).
inline std::optional<std::string> read_text_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  return file ? read_text(file.get()) : std::nullopt;
}

}  // namespace drafthorse::cli
