"""The checkpoint format, the layout of a training folder, the published table, the hub's files.

May import tasks, data, the models and what is below them.
"""
