"""Networks: backbones, heads, encoders, the momentum branch and its queue."""
