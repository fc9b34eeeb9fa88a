"""A convolutional stem in place of a transformer's patch projection, which few images teach it badly.

Source: Xiao et al. 2021 (arXiv:2106.14881), section 4; widths as in vits.py of facebookresearch/moco-v3, which takes
one block off the transformer for it.
"""

from __future__ import annotations

from typing import Any

from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer_hybrid import ConvStem


def conv_stem(img_size: Any, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> HybridEmbed:
    """Build what timm takes as `embed_layer`: 3 x 3 convolutions that halve the image, then one of 1 x 1.

    Args:
        img_size: Side of the images in pixels.
        patch_size: That it takes the place of, a power of two.
        in_chans: Channels of the images.
        embed_dim: Width of a token, which the last convolutions have; each before them has half of the next.
    """
    halvings = patch_size.bit_length() - 1
    widths = [embed_dim >> back for back in reversed(range(halvings))]
    stem = ConvStem(
        in_chans, depth=halvings + 1, channels=(*widths, embed_dim), kernel_size=(*[3] * halvings, 1),
        stride=(*[2] * halvings, 1),
    )  # fmt: skip
    return HybridEmbed(stem, img_size, patch_size=1, in_chans=in_chans, embed_dim=embed_dim, proj=False)
