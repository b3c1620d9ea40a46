"""Which devices multiply bfloat16 faster than float32. Refuses nothing; costs a look at the device."""

from __future__ import annotations

import torch

__all__ = ["bfloat16_is_fast"]


def bfloat16_is_fast(device: str) -> bool:
    """Whether this device multiplies bfloat16 in hardware."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
