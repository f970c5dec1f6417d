"""The magnitude floor weight by weight, from the text of the design."""

import numpy as np

from tests.reference import quant_naive

f32 = np.float32


def held(theta0, latent, scales, names, frozen, *, landing, margin):
  """theta_t of one float32 weight under 'hold'.

  Args:
    theta0: the weight.
    latent: what accumulated on it.
    scales: absmax of its block under each scheme.
    names: the schemes; the first one's values are landed on.
    frozen: whether it sets the scale of one of its blocks.
    landing: 'centre' or 'boundary'.
    margin: share of the distance that 'boundary' asks for.
  """
  theta0, latent = f32(theta0), f32(latent)
  if frozen:
    return theta0
  largest = min(scales)
  target = min(max(theta0 + latent, -largest), largest)
  for scale, name in zip(scales, names):
    old = quant_naive.value_at(theta0, scale, name)
    if quant_naive.value_at(target, scale, name) == old:
      return theta0
  if landing == 'centre':
    place = quant_naive.value_at(target, scales[0], names[0])
    if abs(place) > largest * (1 + 1e-6):
      return theta0
    place = min(max(place, -largest), largest)
  else:
    for scale, name in zip(scales, names):
      lo, hi = quant_naive.interval(theta0, scale, name)
      distance = hi - theta0 if latent > 0 else theta0 - lo
      if abs(latent) < margin * distance:
        return theta0
    place = target
  for scale, name in zip(scales, names):
    old = quant_naive.value_at(theta0, scale, name)
    if quant_naive.value_at(place, scale, name) == old:
      return theta0
  return place
