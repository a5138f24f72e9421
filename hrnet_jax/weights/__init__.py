"""Where weights come from and go to: checkpoints on disk, the hub, another network.

May import the package convert, checkpoints, tasks, the models and what is below them.
"""
