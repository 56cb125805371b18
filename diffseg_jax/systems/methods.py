"""The methods side by side: the value of `config.system` -> what it provides."""

from diffseg_jax.systems.ddep_config import DDEP
from diffseg_jax.systems.ddp_config import DDP
from diffseg_jax.systems.ddpm_seg_config import DDPM_SEG
from diffseg_jax.systems.deeplab_config import DEEPLAB

SYSTEMS = {"ddep": DDEP, "ddp": DDP, "ddpm_seg": DDPM_SEG, "deeplab": DEEPLAB}
