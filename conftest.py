"""Puts the repository on the path; tests run on CPU unless told otherwise."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
