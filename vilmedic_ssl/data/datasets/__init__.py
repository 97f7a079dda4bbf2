"""Datasets by proto; `Context` says for which split and purpose one is built."""
