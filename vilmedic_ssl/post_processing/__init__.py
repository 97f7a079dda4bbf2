"""Plug-ins that turn features into numbers, pictures and files, one per module.

A plug-in is a generator function `name(features, out, *, ...)` under `@proto`; its keyword-only
parameters are its YAML keys. It yields pairs: ("<split>/<plug-in>[/<reference>]/<metric>", a number
or (value, low, high)), or (caption, path of a file it wrote below `out`).
"""
