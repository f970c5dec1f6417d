"""Circuit slices unit by unit, and patched forward passes, in NumPy loops."""

import numpy as np

from tests.reference import decoder_naive

# (module, leaf) -> (kind of unit, its axis in the stacked leaf).
OWNERS = {
    ('mlp', 'gate'): ('neurons', 2),
    ('mlp', 'up'): ('neurons', 2),
    ('mlp', 'down'): ('neurons', 1),
    ('attn', 'q'): ('heads', 2),
    ('attn', 'o'): ('heads', 1),
    ('attn', 'k'): ('kv_heads', 2),
    ('attn', 'v'): ('kv_heads', 2),
}


def _has_any(members):
  return any(bool(x) for row in members for x in row)


def gather(tree, members):
  """{(module, leaf): [units of the circuit, ...]}, layer by layer."""
  out = {}
  for owner, (kind, axis) in OWNERS.items():
    if not _has_any(members[kind]):
      continue
    leaf = np.asarray(tree['layers'][owner[0]][owner[1]])
    out[owner] = np.stack([
        np.take(leaf[layer], unit, axis - 1)
        for layer, row in enumerate(members[kind])
        for unit, member in enumerate(row) if member])
  return out


def spread(tree, members):
  """{(module, leaf): [L, most units in a layer, ...]}, zero on padding."""
  out = {}
  for owner, (kind, axis) in OWNERS.items():
    if not _has_any(members[kind]):
      continue
    leaf = np.asarray(tree['layers'][owner[0]][owner[1]])
    most = max(sum(bool(x) for x in row) for row in members[kind])
    unit_shape = [s for i, s in enumerate(leaf.shape) if i not in (0, axis)]
    slices = np.zeros((len(leaf), most, *unit_shape), leaf.dtype)
    for layer, row in enumerate(members[kind]):
      slot = 0
      for unit, member in enumerate(row):
        if member:
          slices[layer, slot] = np.take(leaf[layer], unit, axis - 1)
          slot += 1
    out[owner] = slices
  return out


def owned(tree, members):
  """{(module, leaf): bool array of its shape}: which weights the units own."""
  out = {}
  for owner, (kind, axis) in OWNERS.items():
    leaf = np.asarray(tree['layers'][owner[0]][owner[1]])
    mask = np.zeros(leaf.shape, bool)
    for index in np.ndindex(*leaf.shape):
      mask[index] = members[kind][index[0]][index[axis]]
    out[owner] = mask
  return out


def last_logits(tokens, params, *, theta, eps, keep=None, other=None):
  """Logits at the last token and the activations of one sequence.

  Args:
    tokens: ids.
    params: full params of the decoder.
    theta: rotary base.
    eps: of the norms.
    keep: {'mlp_hidden': [L, F], 'head_out': [L, N]} bool; units that are False
      get their activation from `other`.
    other: {site: [L, T, ...]} activations.
  """
  layers = params['layers']
  norm = decoder_naive._norm
  x = np.array([params['embed'][token] for token in tokens], np.float64)
  taps = {'mlp_hidden': [], 'head_out': []}

  def replace(site, layer, values):
    for unit in range(values.shape[1]):
      if keep is not None and site in keep and not keep[site][layer][unit]:
        values[:, unit] = other[site][layer][:, unit]
    taps[site].append(values)
    return values

  for i in range(len(layers['attn_norm'])):
    attn = {k: np.float64(v[i]) for k, v in layers['attn'].items()}
    mlp = {k: np.float64(v[i]) for k, v in layers['mlp'].items()}
    normed = np.array([norm(v, layers['attn_norm'][i], eps) for v in x])
    heads = replace('head_out', i, decoder_naive._attention(
        normed, attn, theta, 0, eps))
    for n in range(heads.shape[1]):
      x = x + heads[:, n] @ attn['o'][n]
    normed = np.array([norm(v, layers['mlp_norm'][i], eps) for v in x])
    gate = normed @ mlp['gate']
    hidden = gate / (1 + np.exp(-gate)) * (normed @ mlp['up'])
    x = x + replace('mlp_hidden', i, hidden) @ mlp['down']
  table = np.float64(params.get('lm_head', params['embed']))
  return table @ norm(x[-1], params['final_norm'], eps), taps
