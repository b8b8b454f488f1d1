"""Weights from and for elsewhere: loading encoders, reading foreign files, naming layouts."""
