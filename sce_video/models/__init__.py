"""Networks: backbones, heads and encoders, the momentum branch with its queue."""
