// Whether a draft model is worth the memory it takes from experts. Pure.
//
// A draft that is loaded costs expert slots whether it drafts or not, so that the best depth with it can be slower than
// no draft at all. Evidence is gathered cycle by cycle: the logarithm of how much faster the text would go without the
// draft, less a margin for what is not known of that, summed up and never below zero (Page's CUSUM). A single cycle does
// not decide, a small lasting difference does in time, and a large one soon. What is observed is mostly averages, in
// which one odd cycle stays for a while: the caller waits until several have gone into them.
#pragma once

namespace drafthorse {

class DraftWorth {
 public:
  // with_s: seconds per token as things are, at the best depth; without_s: what they would be without the draft, its
  // memory given to experts. Both above zero.
  void observe(double with_s, double without_s);

  bool should_go() const;
  double gain() const { return gain_; }  // without over with, in speed, lately; 1 before anything was observed

 private:
  double evidence_ = 0;
  double gain_ = 1;
};

}  // namespace drafthorse
