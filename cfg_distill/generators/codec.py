"""A frozen codec that turns codes into sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfg_distill.generators.frozen import Frozen


class Codec(Frozen[Any]):
    """A codec of transformers that student and teacher share. Shapes: K codebooks, F frames, L samples of sound."""

    @torch.no_grad()
    def of(self, frames_KF: Tensor) -> Tensor:
        """Codes to sound, ``[1, L]``; L is 0 without frames."""
        if not frames_KF.shape[-1]:
            return torch.zeros(1, 0)
        codec = self.on(frames_KF.device)
        with torch.autocast(frames_KF.device.type, enabled=False):
            return codec.decode(audio_codes=frames_KF[None]).audio_values.reshape(1, -1).cpu()
