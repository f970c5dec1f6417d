"""What the programs of a training step compute."""


def shapes_made(jaxpr):
  """Shapes of everything that is computed anywhere in a program.

  A layer read out of a stack is not computed: a scan reads so too, unseen.
  """
  shapes = set()
  for eqn in jaxpr.eqns:
    if eqn.primitive.name not in ('jit', 'dynamic_slice', 'squeeze'):
      shapes |= {v.aval.shape for v in eqn.outvars}
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          shapes |= shapes_made(inner)
  return shapes
