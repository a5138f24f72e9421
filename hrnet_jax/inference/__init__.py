"""Trained models in use: evaluation, prediction, the folded forms, export, pictures, costs.

May import tasks, data, the models and what is below them.
"""
