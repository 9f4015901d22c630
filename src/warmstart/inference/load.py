"""A model as its torch module."""

from __future__ import annotations

from typing import Any

from warmstart.bundle.model import Model


def load_module(model: Model, device: Any = "cpu") -> Any:
    """The torch module of ``model`` on ``device``, in evaluation mode, float32."""
    import numpy as np
    import torch

    family, config, reading = model.require()
    with torch.device("meta"):
        module = family.build(config)
    parameters = family.parameters(config)
    state = {p.name: torch.from_numpy(np.array(reading.read(p.storage), np.float32)).to(device) for p in parameters}
    module.load_state_dict(state, assign=True)
    if any(p.storage != p.name for p in parameters):
        module.tie()
    return module.eval()
