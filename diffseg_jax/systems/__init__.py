"""The methods side by side: modules with the same function names."""

from diffseg_jax.systems import ddep, ddp, ddpm_seg

SYSTEMS = {"ddep": ddep, "ddp": ddp, "ddpm_seg": ddpm_seg}
