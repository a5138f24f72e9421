"""What the hrnet-* commands, train.py, eval.py, predict.py and python -m hrnet_jax.* run.

May import every room; no room imports it.
"""
