"""Runs of detection and segmentation: their scores, what these show, and curves of segmentation."""
