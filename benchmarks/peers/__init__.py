"""Other libraries for self-supervised pretraining, on the same films, network, cores and minutes.

`python -m benchmarks.peers --manifest DIR --root ROOT --out DIR [--minutes 20] [--cores 0] [CONTESTANT]...` makes one
environment for each library (from PyPI), trains, imports the encoders, and scores them by one `medmoco curve`.

Every `train_*.py` runs in the environment of its library, imports nothing of medmoco, and writes `encoder.pt`, the
network's state dict, and `time.json`. All use the settings that the library documents; only the network, the size of
the views, the number of epochs, and the normalisation of gray levels are given.
"""
