"""hrnet-train, from a clone: see hrnet_jax/commands/train.py."""

from hrnet_jax.commands.train import entry, main  # noqa: F401

if __name__ == '__main__':
    entry()
