"""Segmentation: masks, decoders on pretrained encoders, and their evaluation."""
