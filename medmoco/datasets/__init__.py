"""Public data sets and phantoms to manifests."""
