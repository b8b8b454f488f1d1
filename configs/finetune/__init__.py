"""tools/finetune.py"""
