// Elementary functions over a vector type, by the same steps and so with the same bits in each.
#pragma once

#include <cstdint>

namespace drafthorse::ops::simd {

// e^x, relative error below 2e-7. x below -87 gives e^-87, above 88 e^88.
template <typename V>
typename V::F exp(typename V::F x) {
  using F = typename V::F;
  x = V::min(V::set(88.0F), V::max(V::set(-87.0F), x));
  // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, so that n ln 2 is exact enough.
  const typename V::I n = V::round(V::mul(x, V::set(0x1.715476p+0F)));
  const F n_float = V::to_float(n);
  F r = V::negated_fma(n_float, V::set(0x1.62e4p-1F), x);
  r = V::negated_fma(n_float, V::set(0x1.7f7d1cp-20F), r);
  // Taylor's polynomial: its remainder is below 1e-8 for such an r.
  F p = V::set(1.0F / 5040);
  p = V::fma(p, r, V::set(1.0F / 720));
  p = V::fma(p, r, V::set(1.0F / 120));
  p = V::fma(p, r, V::set(1.0F / 24));
  p = V::fma(p, r, V::set(1.0F / 6));
  p = V::fma(p, r, V::set(0.5F));
  p = V::fma(p, r, V::set(1.0F));
  p = V::fma(p, r, V::set(1.0F));
  return V::as_float(V::add_int(V::as_int(p), V::template shift_left<23>(n)));
}

// x / (1 + e^-x)
template <typename V>
typename V::F silu(typename V::F x) {
  return V::div(x, V::add(V::set(1.0F), exp<V>(V::sub(V::zero(), x))));
}

}  // namespace drafthorse::ops::simd
