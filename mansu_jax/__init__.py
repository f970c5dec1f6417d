"""mansu_jax: machine unlearning that survives 4-bit quantization."""

__version__ = '0.1.0'
