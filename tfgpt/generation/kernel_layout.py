"""How a decoder's weights lie in memory where it only writes text."""

from __future__ import annotations

from tfgpt.model.decoder import Decoder
from tfgpt.model.lora import projections


def transpose_kernels_for_decoding(decoder: Decoder) -> Decoder:
    """Turns bfloat16 kernels into the layout that a few rows are multiplied with fastest, one kernel at a time.

    Such a decoder cannot be trained or saved any more.

    Returns:
        The decoder itself.
    """
    if decoder.dtype_policy.variable_dtype == "bfloat16":
        for _, _, layer in projections(decoder):
            layer.transpose_kernel()
    return decoder
