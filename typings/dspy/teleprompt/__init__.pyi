# Only its place is used: which modules are optimizers.
