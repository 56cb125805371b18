"""The methods side by side: modules with the same function names."""

from diffseg_jax.systems import ddep, ddpm_seg

SYSTEMS = {"ddep": ddep, "ddpm_seg": ddpm_seg}
