"""Training: the compiled step, the loop around it, recipes, and the folder that a run writes.

May import inference, weights, data, the models and what is below them.
"""
