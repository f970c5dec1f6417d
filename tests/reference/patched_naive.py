"""Decoders of every family in float64, one head at a time, with patches.

Arrays have any leading axes, so that runs with different patches are made
together. `change` may replace what is named `a3.h0<q>`, `m3` or `logits`, the
input of a target; `heads3`, the heads of a layer before W_O [..., T, N, H]; and
`neurons3`, its hidden activations [..., T, F].
"""

import math

import numpy as np
from scipy import special

_ACTIVATIONS = {
    'silu': lambda x: x / (1 + np.exp(-x)),
    'gelu': lambda x: x * (1 + special.erf(x / math.sqrt(2))) / 2,
    'gelu_tanh': lambda x: x / 2 * (1 + np.tanh(
        math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))}


def embed(config, params, tokens):
  """The residual stream before the first layer, [..., T, D]."""
  x = np.float64(params['embed'])[tokens] * config.embed_scale
  if config.positions == 'learned':
    x = x + np.float64(params['positions'])[:x.shape[-2]]
  return x


def run(config, params, x, change=lambda name, value, made: value):
  """Runs the decoder.

  Args:
    config: of the model.
    params: full params of the decoder.
    x: the residual stream before the first layer, [..., T, D].
    change: `(name, value, made) -> value` with which the run goes on; `made`
      has, for the input of a target, the outputs of the sources that it reads.

  Returns:
    Logits of the last token [..., V]; and by name the output of each source
    [..., T, D], the heads and the hidden activations of each layer.
  """
  made, nodes = {'input': x}, {}
  for layer in range(config.num_layers):
    weights = _of_layer(params['layers'], layer)
    known, heads = dict(made), []
    for n in range(config.num_heads):
      heads.append(_attend(config, layer, *(
          _head(config, weights, layer, part, n, change(
              f'a{layer}.h{n}<{part}>', x, known)) for part in 'qkv')))
    name = f'heads{layer}'
    nodes[name] = change(name, np.stack(np.broadcast_arrays(*heads), -2), known)
    given = _attn_gives(config, weights, nodes[name])
    made |= {f'a{layer}.h{n}': given[n] for n in range(config.num_heads)}
    middle = x + sum(given)
    reads = (x, known) if config.parallel else (middle, made)
    normed = _norm(config, weights, 'mlp_norm', change(f'm{layer}', *reads))
    hidden, name = _hidden(config, weights['mlp'], normed), f'neurons{layer}'
    nodes[name] = change(name, hidden, reads[1])
    made[f'm{layer}'] = _mlp_gives(config, weights, nodes[name])
    x = middle + made[f'm{layer}']
  last = change('logits', x, made)[..., -1, :]
  table = np.float64(params.get('lm_head', params['embed']))
  logits = _cap(_norm(
      config, params, 'final_norm', last) @ table.T, config.logits_soft_cap)
  return logits, made | nodes


def _of_layer(tree, layer):
  if isinstance(tree, dict):
    return {name: _of_layer(leaf, layer) for name, leaf in tree.items()}
  return np.float64(tree[layer])


def _size(config, x):
  return np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps)


def _norm(config, weights, name, x):
  if config.norm == 'layer':
    x = x - x.mean(-1, keepdims=True)
  scale = np.float64(weights[name]) + config.norm_offset
  return x / _size(config, x) * scale + weights.get(f'{name}_bias', 0)


def _cap(x, cap):
  return cap * np.tanh(x / cap) if cap else x


def _head(config, weights, layer, part, n, x):
  """The query, key or value [..., T, H] of a query head."""
  attn = weights['attn']
  if part != 'q':
    n = n * config.num_kv_heads // config.num_heads
  out = _norm(config, weights, 'attn_norm', x) @ attn[part][:, n]
  if config.qkv_bias:
    out = out + attn[f'{part}_bias'][n]
  if part == 'v':
    return out
  if config.qk_norm:
    out = _norm(config, attn, f'{part}_norm', out)
  return _rotate(config, layer, out) if config.positions == 'rotary' else out


def _rotate(config, layer, x):
  theta, scaling, factor = config.rope_theta, config.rope_scaling, 1
  if config.windows and config.windows[layer] and config.window_rope_theta:
    theta, scaling = config.window_rope_theta, None
  width = config.d_rotary or config.d_head
  out = x.copy()
  for i in range(width // 2):
    angle = np.arange(x.shape[-2]) * theta**(-2 * i / width)
    if scaling is not None:
      assert scaling.kind in ('linear', 'longrope')
      of_pair = scaling.kind == 'longrope'
      angle = angle / (scaling.short_factors[i] if of_pair else scaling.factor)
      factor = scaling.attention_factor if of_pair else 1
    a, b = x[..., i], x[..., i + width // 2]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    out[..., i] = a * cos - b * sin
    out[..., i + width // 2] = b * cos + a * sin
  return out


def _attend(config, layer, queries, keys, values):
  scale = config.query_scale or config.d_head**-0.5
  scores = _cap(
      queries @ keys.swapaxes(-1, -2) * scale, config.attn_soft_cap)
  ago = np.subtract.outer(*[np.arange(scores.shape[-1])] * 2)
  window = config.windows[layer] if config.windows else 0
  reads = (ago >= 0) & (ago < (window or len(ago)))
  weights = np.where(reads, np.exp(scores), 0)
  return weights @ values / weights.sum(-1, keepdims=True)


def _attn_gives(config, weights, heads):
  """What each head adds to the stream, of N [..., T, D]."""
  attn = weights['attn']
  shares = [heads[..., n, :] @ attn['o'][n] + attn.get('o_bias', 0) / len(
      attn['o']) for n in range(config.num_heads)]
  if not config.post_norms:
    return shares
  scale = weights['attn_post_norm'] + config.norm_offset
  return [share / _size(config, sum(shares)) * scale for share in shares]


def _hidden(config, mlp, x):
  act = _ACTIVATIONS[config.activation]
  up = x @ mlp['up'] + mlp.get('up_bias', 0)
  return act(x @ mlp['gate']) * up if config.gated else act(up)


def _mlp_gives(config, weights, hidden):
  out = hidden @ weights['mlp']['down'] + weights['mlp'].get('down_bias', 0)
  return _norm(
      config, weights, 'mlp_post_norm', out) if config.post_norms else out
