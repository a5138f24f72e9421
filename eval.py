"""hrnet-eval, from a clone: see hrnet_jax/commands/eval.py."""

from hrnet_jax.commands.eval import entry, main  # noqa: F401

if __name__ == '__main__':
    entry()
