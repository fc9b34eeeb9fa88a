"""From public data sets and phantoms to manifests."""
