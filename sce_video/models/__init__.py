"""Networks: backbones, heads, encoders, the momentum encoder and its queue (momentum.py)."""
