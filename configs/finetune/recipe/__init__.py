"""Recipes of tools/finetune.py"""
