// Experts that a layer needs and a device lacks: which are copied to it and computed there, and which the host computes
// while the link is busy with the others. Pure.
#pragma once

#include <span>
#include <vector>

namespace drafthorse {

struct MissingExpert {
  double copy_s = 0;  // to copy it to the device
  double host_s = 0;  // to compute its tokens on the host
};

// True for those the host should compute. The copies go one after the other, so does the host's work, both at once:
// what ends first is chosen, and of nearly equal ways the one that copies more, since what is copied stays for later.
std::vector<bool> compute_on_host(std::span<const MissingExpert> missing);

}  // namespace drafthorse
