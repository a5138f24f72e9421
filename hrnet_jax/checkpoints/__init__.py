"""Weights on disk and on the hub: the format, finding and loading, the published table.

May import data, the models and what is below them; `hub_cache` also the package convert.
"""
