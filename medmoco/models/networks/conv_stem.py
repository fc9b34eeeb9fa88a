"""A convolutional stem that replaces a transformer's patch projection, which is hard to learn from few images.

Source: Xiao et al. 2021 (arXiv:2106.14881), section 4; widths as in vits.py of facebookresearch/moco-v3, which removes
one block of the transformer in return.
"""

from __future__ import annotations

from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer_hybrid import ConvStem


def conv_stem_widths(embed_dim: int, patch_size: int = 16) -> list[int]:
    """Return the channels of each convolution: they double from layer to layer, and the last two equal a token's."""
    halvings = patch_size.bit_length() - 1
    return [*(embed_dim >> back for back in reversed(range(halvings))), embed_dim]


def conv_stem(img_size: Any, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> HybridEmbed:
    """Return an `embed_layer` for timm: 3 x 3 convolutions that each halve the image, followed by one of 1 x 1.

    It replaces patches whose side `patch_size`, in pixels, is a power of two.
    """
    widths = conv_stem_widths(embed_dim, patch_size)
    halvings = len(widths) - 1
    stem = ConvStem(
        in_chans, depth=len(widths), channels=tuple(widths), kernel_size=(*[3] * halvings, 1),
        stride=(*[2] * halvings, 1),
    )  # fmt: skip
    return HybridEmbed(stem, img_size, patch_size=1, in_chans=in_chans, embed_dim=embed_dim, proj=False)
