"""What lies in recorded/ is small, and holds at least what its cases are there to check."""

from pathlib import Path

import numpy as np
import pytest

RECORDED = Path(__file__).parent / "recorded"
REQUIRED = {  # case: arrays without which a test would pass on what is left
    "adm/unet_b_new": "x t y output time_emb t_frac output_t_frac act_in_2 act_mid act_out_0",
    "baselines/corruptions_rows": "image out_gaussian_noise out_glass_blur out_jpeg_compression",
    "ddep/flax_hybrid": "input block1 posembed encoderblock_0 encoderblock_1 encoded logits "
    "encoded_no_cls",
    "ddep/transunet_ddep": "noisy noise encoded losses grad_norms final_eval_pred "
    "param_after/segmentation_head.0.weight bn_after/decoder.blocks.3.conv2.1.running_var",
    "ddp/bev_ddp_timed": "img cam_neck bev_pooled feature step0_prob step2_prob out iou "
    "train/grad/embedding_table.weight",
    "ddp/ddp_seg_convnext_sampling": "feature time_embedding ddim_T3_acc0_r1_td1/step1_noisy_map "
    "ddim_T3_acc0_r1_td1/step2_logits ddim_T3_acc0_r1_td1/label ddim_T3_acc1_r1_td1/out_low",
    "ddp/deform_attn": "query value_proj sampling_offsets attention_weights output core_out",
    "ddp/depth_ddp_timed": "img feature flip/depth ddim_T3_r1_td1/step2_pred ddim_T3_r1_td1/out "
    "train/gt_normalised train/grad_norms train/grad/down.conv.weight",
    "libraries/torchvision_deeplab": "layer4 logits enlarged",
}

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("case", REQUIRED)
def test_a_case_holds_what_it_is_there_to_check(case):
    with np.load(RECORDED / f"{case}.npz") as arrays:
        missing = set(REQUIRED[case].split()) - set(arrays.files)
        assert not missing
        assert all(arrays[name].size for name in REQUIRED[case].split())


def test_all_recordings_together_stay_small():
    files = [file for file in RECORDED.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
