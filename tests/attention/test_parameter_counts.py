"""Parameter counts of the blocks at 64 and 256 channels, as their authors' code and their formulas give them."""

import pytest

from models.attention import ATTENTION
from tests.attention.zoo import count


def whole(block):
    return block


# key, options, ndim, part of the block that the count is of, at 64 channels, at 256 channels
COUNTS = [
    ("eca", {}, 2, whole, 3, 5),
    ("eca", {}, 3, whole, 3, 5),
    ("se", {}, 2, whole, 580, 8464),
    ("se", {"bias": False}, 3, whole, 512, 8192),
    ("psa", {"official": True}, 2, whole, 8256, 131_328),
    ("psa", {"official": True, "layout": "sequential"}, 3, whole, 7064, 111_200),
    ("psa", {}, 2, whole, 8256 + 128, 131_328 + 512),
    ("cbam", {}, 2, whole, 680, 8564),
    ("cbam", {"bias": False}, 2, whole, 612, 8292),
    ("ela", {"variant": "T"}, 2, whole, 448, 1792),
    ("ela", {"variant": "B"}, 3, whole, 576, 2304),
    ("ela", {"variant": "S"}, 2, whole, 2688, 10_752),
    ("ela", {"variant": "L"}, 2, whole, 3712, 14_848),
    ("coord", {}, 2, whole, 1688, 6680),
    ("coord_se", {}, 2, whole, 2065, 32_833),
    ("lka", {}, 2, whole, 9024, 85_248),
    ("lka", {}, 3, whole, 34_240, 186_112),
    ("lka", {"projections": True}, 2, whole, 17_344, 216_832),
    ("dfc", {}, 2, whole, 5120, 69_632),
    ("ulsam", {}, 2, whole, 332, 1292),
    ("ulsam", {"groups": 1}, 3, whole, 323, 1283),
    ("dual", {"branches": "position"}, 2, whole, 5201, 82_241),
    ("dual", {"branches": "channel"}, 3, whole, 1, 1),
    ("dual", {}, 2, whole, 5202, 82_242),
    ("channel_group", {}, 2, whole, 16_640, 263_168),
    ("channel_group", {"qkv_bias": False}, 3, whole, 16_640 - 192, 263_168 - 768),
    ("hilo", {}, 2, whole, 14_400, 229_632),
    ("hilo", {}, 3, whole, 14_400, 229_632),
    ("agent", {}, 2, whole, 29_628, 315_120),
    ("agent", {"window": 56, "agents": 9}, 2, whole, 23_076, 288_912),
    ("bra", {}, 2, whole, 17_280, 265_728),
    ("neighborhood", {}, 2, whole, 16_640, 263_168),
    ("neighborhood", {}, 3, whole, 16_640, 263_168),
    ("neighborhood", {"relative_bias": True}, 2, whole, 16_978, 264_520),
    ("halo", {"heads": 8}, 2, whole, 12_720, 198_336),
    ("focal", {}, 2, whole, 19_011, 272_643),
    ("focal", {"levels": 3}, 2, whole, 22_212, 285_444),
    ("maxvit", {}, 2, lambda b: b.block_attention, 16_978, 264_520),
    ("maxvit", {}, 2, lambda b: b.grid_attention, 16_978, 264_520),
    ("shsa", {}, 2, whole, 4925, 70_972),
    ("dla", {}, 2, whole, 19_408, 298_816),
    ("dla", {"outer_gate": False}, 2, whole, 11_088, 167_232),
    ("medusa", {}, 2, lambda b: b.head, 1248, 4512),
    ("strip", {"reduction": 2}, 2, whole, 8896, 136_960),
    ("domain_channel", {}, 3, whole, 3 * 64 * 4 + 2 * 4 + 64, 3 * 256 * 16 + 2 * 16 + 256),
    ("gaussian", {"heads": 8, "gaussians": 5}, 2, whole, 80, 80),
    ("gpsa", {"heads": 4}, 2, whole, 16_468, 262_420),
    ("flow", {}, 2, whole, 16_640, 263_168),
    ("l2_linear", {}, 2, whole, 16_642, 263_176),
    ("l2_linear", {"concentration": True}, 2, whole, 23_298, 289_800),
    ("vsa", {}, 2, whole, 17_498, 272_744),
    ("polyline", {}, 2, whole, 18_372, 269_904),
    ("lsda", {}, 2, whole, 33_580, 528_496),
    ("aggregated", {}, 2, whole, 24_168, 337_824),
    ("conv_glu", {}, 2, whole, 34_744, 532_216),
    ("wave_block", {}, 2, whole, 0, 0),
    ("atconv", {}, 2, whole, 12_634, 197_722),
    ("wavemix", {}, 2, whole, 83_344, 1_328_704),
    ("wavelet", {}, 2, whole, 27_192, 296_906),
    ("raft_mlp", {}, 2, whole, 66_624, 560_256),
    ("region", {}, 3, whole, 16_704, 263_424),
    ("cab", {}, 2, whole, 24_599, 396_381),
    ("ocab", {"heads": 2}, 2, whole, 19_682, 266_210),
    ("rgt", {}, 2, whole, 13_920, 190_848),
    ("craft_high", {}, 2, whole, 14_464, 229_888),
    ("craft_window", {}, 2, whole, 17_442, 266_232),
    ("craft_fusion", {}, 2, whole, 67_846, 1_032_952),
    ("double_window", {"heads": 4}, 2, whole, 17_540, 264_068),
    ("token_aggregation", {}, 2, whole, 28_672, 458_752),
    ("dau", {}, 2, whole, 82_995, 1_327_155),
    ("pat_channel", {}, 2, whole, 7104, 111_360),
    ("pat_spatial", {}, 2, whole, 1184, 17_024),
    ("head_tokens", {}, 2, whole, 18_944, 273_728),
    ("probing", {}, 3, whole, 4160, 16_640),
]


@pytest.mark.parametrize(("key", "options", "ndim", "part", "at_64", "at_256"), COUNTS)
def test_parameter_count(key, options, ndim, part, at_64, at_256):
    assert count(part(ATTENTION[key](64, ndim=ndim, **options))) == at_64
    assert count(part(ATTENTION[key](256, ndim=ndim, **options))) == at_256
