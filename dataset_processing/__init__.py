"""`medmoco prepare` as one script for each public data set; README.md lists them."""
