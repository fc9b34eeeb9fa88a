"""Other libraries for self-supervised pretraining, on the same films, network, cores and minutes.

Every `train_*.py` but medmoco's own runs in the environment of its library, imports nothing of medmoco, and writes
`encoder.pt`, the network's state dict, and `time.json`. README.md has the commands and the rules.
"""
