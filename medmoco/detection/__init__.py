"""Object detection: boxes, detectors on pretrained encoders, and their evaluation."""
