"""The class tree, datasets over it, decoding of scores, metrics and calibration."""
