"""The steps of MANSU as optax transformations, for any pytree and any chain."""

from mansu_jax.transforms.accumulate import accumulate_exactly
from mansu_jax.transforms.chain import mansu
from mansu_jax.transforms.circuit_mask import CircuitMaskState
from mansu_jax.transforms.circuit_mask import mask_to_circuit
from mansu_jax.transforms.exact import floor_params
from mansu_jax.transforms.exact import step
from mansu_jax.transforms.hold import hold_at_origin
from mansu_jax.transforms.latent import MagnitudeFloorState
from mansu_jax.transforms.lift import lift_to_floor
from mansu_jax.transforms.magnitude_floor import magnitude_floor
from mansu_jax.transforms.null_space import NullSpaceState
from mansu_jax.transforms.null_space import OffBasisState
from mansu_jax.transforms.null_space import project_off_basis
from mansu_jax.transforms.null_space import project_to_null_space
from mansu_jax.transforms.null_space import remove_component
