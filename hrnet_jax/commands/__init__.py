"""The commands hrnet-eval, hrnet-predict and hrnet-train; the library does not import them."""
