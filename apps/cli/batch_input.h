// The requests of a batch: a file of lines that is indexed once and then read line by line, so that any number of them
// takes little memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "batch_request.h"
#include "line_reader.h"

namespace drafthorse::cli {

class BatchInput {
 public:
  struct Line {
    int64_t number = 0;  // in the file, from 1; empty lines count and are not here
    int64_t offset = 0;
    int64_t bytes = 0;
    std::string custom_id = {};  // empty: none that can be read
    int64_t token_limit = -1;    // of a valid one; -1: none
    bool valid = false;          // as far as can be told without the model
  };

  // Reads all of it once. "-" is standard input, kept in an unnamed file where it cannot be read again.
  // kFile: it cannot be read, or holds nothing; kUsage: a custom_id is there twice.
  static Result<std::unique_ptr<BatchInput>> open(const std::string& path, const RequestDefaults& defaults);
  ~BatchInput();
  BatchInput(const BatchInput&) = delete;
  BatchInput& operator=(const BatchInput&) = delete;

  const std::string& name() const { return name_; }
  const std::vector<Line>& lines() const { return lines_; }
  // The index among lines(); nothing: there is none.
  std::optional<size_t> find(const std::string& custom_id) const;
  std::optional<size_t> find_number(int64_t number) const;
  // Line `index` again. kFile where the file is not what it was.
  Result<RequestLine> read(size_t index) const;
  // Whether the file behind `descriptor` is this one.
  bool is_file(int descriptor) const;

  bool any_chat() const { return any_chat_; }  // among the valid requests

 private:
  BatchInput(std::string name, int descriptor, RequestDefaults defaults)
      : name_(std::move(name)), descriptor_(descriptor), defaults_(std::move(defaults)) {}
  Status read_index();
  Status add(const FileLine& read);

  std::string name_;  // for messages
  int descriptor_;
  RequestDefaults defaults_;
  std::vector<Line> lines_;
  std::unordered_map<std::string, size_t> by_id_;
  bool any_chat_ = false;
};

}  // namespace drafthorse::cli
