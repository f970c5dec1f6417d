"""A disk without room: the system limits the size of files."""

import contextlib
import resource


@contextlib.contextmanager
def no_room(size):
  """Limits files to `size` bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
