"""The numbers of each size of CLIPSeg."""

from __future__ import annotations

from typing import Any

from models.errors import ModelError

# What transformers calls vision_config, text_config, and the rest. rd64_refined is CIDAS/clipseg-rd64-refined (Lueddecke
# and Ecker 2022, arXiv 2112.10003); tiny is ours, for tests and CPUs.
# The published one keeps the positions of CLIP's images of 224; those of 352, which it was trained on, are interpolated.
SIZES: dict[str, dict[str, Any]] = {
    "rd64_refined": {
        "vision_config": {"image_size": 224, "patch_size": 16},
        "text_config": {},
        "extract_layers": [3, 6, 9],
        "use_complex_transposed_convolution": True,
    },
    "tiny": {
        "vision_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": 128,
            "patch_size": 16,
        },
        "text_config": {
            "vocab_size": 258,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "pad_token_id": 0,
            "bos_token_id": 256,
            "eos_token_id": 257,
        },
        "projection_dim": 32,
        "extract_layers": [0, 1, 2],
        "reduce_dim": 32,
        "decoder_intermediate_size": 64,
        "use_complex_transposed_convolution": True,
    },
}


def make_network(size: str) -> Any:
    """transformers' CLIPSegForImageSegmentation with random weights, without its loss and its downloads.

    Raises:
        ModelError: an unknown size, or the package is not installed.
    """
    if size not in SIZES:
        raise ModelError(f"size is {size!r}; choose from: {', '.join(SIZES)}")
    try:
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    except ImportError as error:
        raise ModelError(
            f"ClipSegSegmenter needs the package transformers ({error}); install it: pip install 'delineate[sam]'"
        ) from error
    return CLIPSegForImageSegmentation(CLIPSegConfig(**SIZES[size]))
