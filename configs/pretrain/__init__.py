"""tools/pretrain.py"""
