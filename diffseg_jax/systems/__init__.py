"""The methods side by side: modules with the same function names."""

from diffseg_jax.systems import ddep

SYSTEMS = {"ddep": ddep}
