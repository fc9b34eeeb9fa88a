"""One script per public data set: its own tables in, manifests out; README.md lists them."""
