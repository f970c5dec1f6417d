"""A Llama forward pass in float64 loops, one token and one head at a time."""

import math

import numpy as np


def _norm(x, scale, eps):
  return x / math.sqrt(sum(v * v for v in x) / len(x) + eps) * scale


def _rotate(vector, position, theta):
  half = len(vector) // 2
  out = np.zeros_like(vector)
  for i in range(half):
    angle = position * theta ** (-2 * i / len(vector))
    a, b = vector[i], vector[i + half]
    out[i] = a * math.cos(angle) - b * math.sin(angle)
    out[i + half] = b * math.cos(angle) + a * math.sin(angle)
  return out


def _head(x, layer, name, head, eps):
  """The query, key or value of a head before its rotation."""
  out = x @ layer[name][:, head]
  if f'{name}_bias' in layer:
    out = out + layer[f'{name}_bias'][head]
  if f'{name}_norm' in layer:
    out = _norm(out, layer[f'{name}_norm'], eps)
  return out


def _attention(x, layer, theta, window, eps):
  """x [T, D] -> per head [T, N, H]."""
  length = len(x)
  num_heads, d_head = layer['q'].shape[1:]
  group = num_heads // layer['k'].shape[1]
  out = np.zeros((length, num_heads, d_head))
  for n in range(num_heads):
    kv = n // group
    for t in range(length):
      query = _rotate(_head(x[t], layer, 'q', n, eps), t, theta)
      scores, read = [], range(max(0, t + 1 - window) if window else 0, t + 1)
      for s in read:
        key = _rotate(_head(x[s], layer, 'k', kv, eps), s, theta)
        scores.append(query @ key / math.sqrt(d_head))
      weights = [math.exp(score - max(scores)) for score in scores]
      for weight, s in zip(weights, read):
        value = _head(x[s], layer, 'v', kv, eps)
        out[t, n] += weight / sum(weights) * value
  return out


def forward(tokens, params, *, theta, eps, windows=()):
  """Returns logits [T, V] and {site: [L, T, ...]} of one sequence."""
  layers = params['layers']
  x = np.array([params['embed'][token] for token in tokens], np.float64)
  sites = {name: [] for name in (
      'mlp_hidden', 'head_out', 'mlp_out', 'attn_out', 'residual')}
  for i in range(len(layers['attn_norm'])):
    attn = {k: v[i].astype(np.float64) for k, v in layers['attn'].items()}
    mlp = {k: v[i].astype(np.float64) for k, v in layers['mlp'].items()}
    normed = np.array([_norm(v, layers['attn_norm'][i], eps) for v in x])
    heads = _attention(
        normed, attn, theta, windows[i] if windows else 0, eps)
    attn_out = np.array([
        sum(heads[t, n] @ attn['o'][n] for n in range(heads.shape[1]))
        for t in range(len(x))])
    x = x + attn_out
    normed = np.array([_norm(v, layers['mlp_norm'][i], eps) for v in x])
    gate, up = normed @ mlp['gate'], normed @ mlp['up']
    hidden = gate / (1 + np.exp(-gate)) * up
    mlp_out = hidden @ mlp['down']
    x = x + mlp_out
    for name, value in zip(sites, (hidden, heads, mlp_out, attn_out, x)):
      sites[name].append(value)
  x = np.array([_norm(v, params['final_norm'], eps) for v in x])
  table = params.get('lm_head', params['embed'])
  return x @ table.T, {name: np.array(v) for name, v in sites.items()}
