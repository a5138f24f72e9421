"""hrnet-predict, from a clone: see hrnet_jax/commands/predict.py."""

from hrnet_jax.commands.predict import entry, main  # noqa: F401

if __name__ == '__main__':
    entry()
