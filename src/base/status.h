// What can happen at run time and is nobody's bug: bad files, flags and requests, failed reads, too little memory.
//
// A Status carries a kind, which decides the process's exit code, and one sentence a person can act on:
// what happened, where, and what to do. Result<T> is a Status or a T. Our own bugs are CHECKs (check.h) instead.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "base/check.h"

namespace drafthorse {

// The numbers are the exit codes of the command line programs.
enum class StatusKind {
  kOk = 0,
  kRuntime = 1,        // failed while running: a read that stays broken, a context overrun
  kUsage = 2,          // a flag or request that makes no sense
  kFile = 3,           // a file that is missing, unreadable, damaged or unsupported
  kMemory = 4,         // the budget is too small for what was asked
  kInterrupted = 130,  // by the user, or a callback that asked for it
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  bool ok() const { return kind_ == StatusKind::kOk; }
  StatusKind kind() const { return kind_; }
  const std::string& message() const { return message_; }

 private:
  StatusKind kind_ = StatusKind::kOk;
  std::string message_;
};

inline Status runtime_error(std::string message) { return {StatusKind::kRuntime, std::move(message)}; }
inline Status usage_error(std::string message) { return {StatusKind::kUsage, std::move(message)}; }
inline Status file_error(std::string message) { return {StatusKind::kFile, std::move(message)}; }
inline Status memory_error(std::string message) { return {StatusKind::kMemory, std::move(message)}; }
inline Status interrupted_error() { return {StatusKind::kInterrupted, "interrupted"}; }

// Either a value or the reason why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                                 // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) { CHECK(!status_.ok()); }  // NOLINT(google-explicit-constructor)

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& value() & {
    CHECK(ok());
    return *value_;
  }
  const T& value() const& {
    CHECK(ok());
    return *value_;
  }
  T&& value() && {
    CHECK(ok());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace drafthorse

#define DH_CONCAT_INNER(a, b) a##b
#define DH_CONCAT(a, b) DH_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                \
  do {                                             \
    ::drafthorse::Status dh_status = (expression); \
    if (!dh_status.ok()) return dh_status;         \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_INNER(DH_CONCAT(dh_result_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                   \
  if (!result.ok()) return result.status();                     \
  declaration = std::move(result).value()
