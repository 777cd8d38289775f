// Which model a file holds, told by 64 bits: what was made for one model must not be used with another.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "io/gguf_index.h"

namespace drafthorse {

// 16 hexadecimal digits over every tensor's name, type and shape and the first bytes of up to a thousand of them,
// wherever the files lie and however the model is split over them. Reads some MiB at most. kFile where a read fails.
Result<std::string> model_fingerprint(const GgufIndex& index);

}  // namespace drafthorse
