"""Names of the schemes that the deployment check knows, by engine."""

from __future__ import annotations

from collections.abc import Sequence

BF16 = '_bf16'  # Suffix: bitsandbytes multiplies in bfloat16.
FLOAT32_PRODUCTS = ('nf4', 'fp4', 'nf4_dq', 'fp4_dq')  # bitsandbytes, float32.
BITSANDBYTES = (
    *FLOAT32_PRODUCTS, *(f'{name}{BF16}' for name in FLOAT32_PRODUCTS))
UNQUANTIZED = 'f32'  # GGUF file without a quantizer; checks the conversion.
# GGUF scheme -> `llama_ftype` of llama.cpp.
FTYPES = {
    'q4_0': 2, 'q4_1': 3, 'q5_0': 8, 'q8_0': 7, 'q4_k': 14, 'q6_k': 18}
LLAMACPP = (UNQUANTIZED, *FTYPES)
ALL = (*BITSANDBYTES, *LLAMACPP)
DEFAULT = ('nf4', 'fp4', 'f32', 'q4_0', 'q8_0', 'q4_k', 'q6_k')
# With float32 products, equal weights give equal answers.
EXACT = (*FLOAT32_PRODUCTS, UNQUANTIZED)


def extras(names: Sequence[str]) -> list[str]:
  """Extras of setup.py that some schemes need."""
  return [extra for extra, known in (
      ('parity', BITSANDBYTES), ('llamacpp', LLAMACPP))
          if set(names) & set(known)]


def packages(names: Sequence[str]) -> list[str]:
  """Distributions whose versions affect the result of some schemes."""
  found = ['jax', 'gguf']
  if set(names) & set(BITSANDBYTES):
    found += ['torch', 'transformers', 'bitsandbytes']
  if set(names) & set(LLAMACPP):
    found += ['llama-cpp-python']
  return found
